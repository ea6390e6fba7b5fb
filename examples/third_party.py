"""Packages from PyPI that build on torch.nn's recurrent modules, unmodified, on rnnfast.

Each of the first functions gives a package's own model, with random weights. It runs forward and
backward on torch.nn, then on rnnfast in two ways: built under ``rnnfast.patched()``, and built as
ever and converted by ``rnnfast.accelerate()``. The script checks that every recurrent module was
swapped and that the kernels ran, compares outputs, the gradients of all parameters and, where the
package has a training loop, the weights after some steps of it, and prints a table:

    python examples/third_party.py              # those packages that are installed
    python examples/third_party.py --require    # a missing one is an error

A deviation is the largest difference in a tensor, relative to the tensor's largest value or, where
that is less, to a millionth of the largest of all tensors. Above 1e-10 in float64, or 1e-4 in
float32, it is an error, and the exit status 1. Models are in training mode, dropout included, which
draws the same masks on both sides. The last column is the time of torch.nn over that of rnnfast,
under the default backend, for a forward and backward of the whole model in float32.
"""

import argparse
import logging
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata

import numpy as np
import torch
from torch import Tensor, nn

import rnnfast
from rnnfast import _extension

BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-4}
MODULES = tuple(getattr(rnnfast, name) for name in rnnfast.modules.__all__)


@dataclass
class Case:
    """A package's model and what to do with it. All draw from the random state that they find."""

    build: Callable[[], nn.Module]
    # From the model and the inputs, by name, to the outputs.
    run: Callable[..., Iterable[Tensor]]
    inputs: dict[str, Tensor]
    # float32 where the package casts its inputs to that.
    dtype: torch.dtype = torch.float64
    # The package's own training of a new model, to the weights.
    train: Callable[[], dict[str, Tensor]] | None = None


def recurrent_ppo() -> Case:
    """Reinforcement learning with memory: an LSTM for the actor and one for the critic.

    While it plays, the policy takes single steps; it learns from sequences.
    """
    from gymnasium.spaces import Box, Discrete
    from sb3_contrib import RecurrentPPO
    from sb3_contrib.common.recurrent.type_aliases import RNNStates
    from sb3_contrib.ppo_recurrent import MlpLstmPolicy

    envs, seq_len = 8, 128

    def run(policy: nn.Module, observations: Tensor, actions: Tensor) -> Iterable[Tensor]:
        state = (torch.zeros(1, envs, 256), torch.zeros(1, envs, 256))
        episode_starts = torch.zeros(envs * seq_len)
        return policy.evaluate_actions(
            observations, actions, RNNStates(state, state), episode_starts
        )

    def train() -> dict[str, Tensor]:
        learner = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", n_steps=128, seed=0, device="cpu")
        return learner.learn(512).policy.state_dict()

    return Case(
        build=lambda: MlpLstmPolicy(Box(-1, 1, (16,)), Discrete(4), lambda progress: 3e-4),
        run=run,
        inputs={
            "observations": torch.rand(envs * seq_len, 16),
            "actions": torch.randint(4, (envs * seq_len,)),
        },
        dtype=torch.float32,
        train=train,
    )


def recurrent_network() -> Case:
    """Forecasting: a GRU that the package derives from torch's, on packed histories."""
    import lightning.pytorch
    import pandas
    from pytorch_forecasting import RecurrentNetwork, TimeSeriesDataSet

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    times, series = (index.ravel() for index in np.indices((60, 16)))
    data = TimeSeriesDataSet(
        pandas.DataFrame({"time": times, "series": series, "value": np.random.randn(60 * 16)}),
        time_idx="time",
        target="value",
        group_ids=["series"],
        min_encoder_length=4,
        max_encoder_length=48,
        max_prediction_length=12,
        time_varying_unknown_reals=["value"],
    )

    def build() -> nn.Module:
        return RecurrentNetwork.from_dataset(data, cell_type="GRU", hidden_size=64, rnn_layers=2)

    def train() -> dict[str, Tensor]:
        model = build()
        options = {"accelerator": "cpu", "precision": "64-true", "max_steps": 20, "logger": False}
        options |= {"enable_checkpointing": False, "enable_model_summary": False}
        trainer = lightning.pytorch.Trainer(**options, enable_progress_bar=False)
        trainer.fit(model, data.to_dataloader(batch_size=32))
        return model.state_dict()

    inputs, _ = next(iter(data.to_dataloader(batch_size=32)))
    return Case(build, lambda model, **inputs: [model(inputs).prediction], inputs, train=train)


def encodec() -> Case:
    """Audio: EnCodec (Défossez et al. 2022), an LSTM amid the convolutions of both halves.

    Without the quantizer between these, which passes no gradient.
    """
    from transformers import EncodecConfig, EncodecModel

    return Case(
        build=lambda: EncodecModel(EncodecConfig()).train(),
        run=lambda model, audio: [model.decoder(model.encoder(audio))],
        inputs={"audio": torch.randn(2, 1, 9600)},
    )


def ner_tagger() -> Case:
    """Language: named entities by bidirectional LSTMs on packed characters and words, and a CRF."""
    from stanza.models.common.doc import Document
    from stanza.models.ner.data import DataLoader
    from stanza.models.ner.model import NERTagger

    options = {"char": True, "char_emb_dim": 100, "char_hidden_dim": 100, "char_num_layers": 1}
    options |= {"word_emb_dim": 100, "hidden_dim": 256, "num_layers": 2, "char_rec_dropout": 0}
    options |= {"dropout": 0.5, "word_dropout": 0.01, "locked_dropout": 0.0, "lowercase": True}
    options |= {"charlm": False, "shorthand": "en_random", "emb_finetune_known_only": False}
    lexicon = ["".join(random.choices("etaoinshrdlu", k=random.randint(1, 12))) for _ in range(500)]
    sentences = [
        [
            {"id": position, "text": random.choice(lexicon), "ner": random.choice(["O", "S-PER"])}
            for position in range(1, random.randint(4, 40))
        ]
        for _ in range(32)
    ]
    loader = DataLoader(Document(sentences), len(sentences), options)
    words, word_chars, mask, chars, tags, _, word_order, char_order, *lengths, offsets = loader[0]
    sentence_lengths, word_lengths, char_lengths = lengths

    def run(model: nn.Module) -> Iterable[Tensor]:
        loss, logits, transitions = model(
            *(words, word_chars, mask, tags, word_order, sentence_lengths, word_lengths),
            *(chars, offsets, char_lengths, char_order),
        )
        return loss, *logits, *transitions

    return Case(build=lambda: NERTagger(options, loader.vocab), run=run, inputs={})


def attentive_fp() -> Case:
    """Chemistry: Attentive FP (Xiong et al. 2020), a graph network that updates by GRU cells."""
    from torch_geometric.nn import AttentiveFP

    molecules, atoms, bonds = 32, 20, 44
    molecule_of_bond = torch.arange(molecules).repeat_interleave(bonds)
    return Case(
        build=lambda: AttentiveFP(39, 200, 1, edge_dim=10, num_layers=2, num_timesteps=2),
        run=lambda model, **graph: [model(**graph)],
        inputs={
            "x": torch.randn(molecules * atoms, 39),
            "edge_index": atoms * molecule_of_bond + torch.randint(atoms, (2, molecules * bonds)),
            "edge_attr": torch.randn(molecules * bonds, 10),
            "batch": torch.arange(molecules).repeat_interleave(atoms),
        },
    )


CASES = {
    "sb3-contrib": recurrent_ppo,
    "pytorch-forecasting": recurrent_network,
    "transformers": encodec,
    "stanza": ner_tagger,
    "torch-geometric": attentive_fp,
}


def seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def kernel_calls() -> int:
    return sum(_extension._C.kernel_calls().values())


def forward_backward(case: Case, model: nn.Module) -> dict[str, list[Tensor | None]]:
    """The outputs, and the gradient of each parameter."""
    seed()
    dtype = next(model.parameters()).dtype
    floating = {name for name, value in case.inputs.items() if value.is_floating_point()}
    inputs = {k: v.to(dtype) if k in floating else v for k, v in case.inputs.items()}
    model.zero_grad()
    outputs = list(case.run(model, **inputs))
    sum(output.square().mean() for output in outputs).backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    return {"outputs": outputs, "gradients": gradients}


def deviation(ours: Iterable[Tensor | None], expected: Iterable[Tensor | None]) -> float:
    """The largest relative difference; infinite where ours has no such tensor or no finite one."""
    pairs = [(a, b) for a, b in zip(ours, expected, strict=True) if a is not None or b is not None]
    for a, b in pairs:
        if a is None or b is None or a.shape != b.shape or not a.isfinite().all():
            return float("inf")
    largest = [b.abs().max().item() for _, b in pairs]
    # A gradient that cancels to nothing is all rounding: it has no relative difference.
    least = 1e-6 * max(largest)
    differences = [(a - b).abs().max().item() for a, b in pairs]
    return max(d / max(scale, least) for d, scale in zip(differences, largest, strict=True))


def time_ratio(case: Case, torchs: nn.Module, ours: nn.Module, pairs: int = 9) -> float:
    """Time of torch.nn over time of rnnfast, in turn: the median of the pairs after the first."""
    ratios = []
    for _ in range(pairs + 1):
        start = time.perf_counter()
        forward_backward(case, torchs)
        middle = time.perf_counter()
        forward_backward(case, ours)
        ratios.append((middle - start) / (time.perf_counter() - middle))
    return statistics.median(ratios[1:])


def check(case: Case) -> tuple[list[str], list[str]]:
    """The table's cells after the version, and what is wrong."""
    seed()
    torchs = case.build().to(case.dtype)
    with rnnfast.patched():
        patched = case.build().to(case.dtype)
    accelerated = case.build().to(case.dtype)
    rnnfast.accelerate(accelerated)

    # What the kernels cannot serve is to be an error here, not to be left to torch.
    rnnfast.set_backend("rnnfast")
    expected = forward_backward(case, torchs)
    problems = []
    deviations = dict.fromkeys(expected, 0.0)
    for how, model in {"patched": patched, "accelerate": accelerated}.items():
        model.load_state_dict(torchs.state_dict())
        recurrent = [m for m in model.modules() if isinstance(m, (nn.RNNBase, nn.RNNCellBase))]
        left = [type(module).__name__ for module in recurrent if not isinstance(module, MODULES)]
        if left or not recurrent:
            problems.append(f"{how}: {len(recurrent)} recurrent modules, of which torch's: {left}")
        before = kernel_calls()
        found = forward_backward(case, model)
        if kernel_calls() - before < 2 * len(recurrent):
            problems.append(f"{how}: the kernels did not run for each module, forward and backward")
        for what, tensors in found.items():
            deviations[what] = max(deviations[what], deviation(tensors, expected[what]))
    if case.train is not None:
        seed()
        weights = case.train()
        before = kernel_calls()
        seed()
        with rnnfast.patched():
            deviations["training"] = deviation(case.train().values(), weights.values())
        if kernel_calls() == before:
            problems.append("training: the kernels did not run")
    rnnfast.set_backend("auto")

    bound = BOUNDS[case.dtype]
    for what, value in deviations.items():
        if value > bound:
            problems.append(f"{what}: deviation {value:.1e}, more than {bound:.0e}")
    cells = [str(len(recurrent)), str(case.dtype).removeprefix("torch.")]
    cells += [f"{value:.1e}" for value in deviations.values()] + [""] * (3 - len(deviations))
    return [*cells, f"{time_ratio(case, torchs.float(), accelerated.float()):.2f}"], problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--require", action="store_true", help="fail where a package is missing")
    options = parser.parse_args()
    # The packages warn of what this script does not use.
    warnings.simplefilter("ignore")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {rnnfast.cpu_isa()}\n")
    print("| package | version | modules | dtype | outputs | gradients | training | torch/ours |")
    print("| --- | --- | ---: | --- | ---: | ---: | ---: | ---: |")
    problems, missing = [], []
    for package, make in CASES.items():
        seed()
        try:
            case = make()
        except ModuleNotFoundError as error:
            missing.append(f"not installed: {error.name}; pip install {package}")
            continue
        cells, found = check(case)
        problems += [f"{package}: {problem}" for problem in found]
        print(f"| {' | '.join([package, metadata.version(package), *cells])} |", flush=True)
    if missing or problems:
        print("", *missing, *problems, sep="\n")
    return 1 if problems or len(missing) > (0 if options.require else len(CASES) - 1) else 0


if __name__ == "__main__":
    sys.exit(main())
