"""The command line: what it prints, its exit codes, and that bad input writes nothing."""

import dataclasses
import functools
import io
import re
import subprocess
import sys

import pytest

from rnnfast.benchmark import measure, quick
from rnnfast.benchmark.layers import LayerResult, layer_result
from rnnfast.cli import _LANGUAGE_MODEL, main
from rnnfast.language_model import PRESETS, Run, preset
from rnnfast.text import SPLITS

TINY = [
    *("--preset", "test", "--hidden-size", "8", "--num-steps", "4", "--batch-size", "4"),
    *("--epochs", "2", "--backend", "torch"),
]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("The cat sat on the mat, and the dog ran.\nSo it is.\n" * 40)
    return path


@pytest.fixture
def run(tmp_path, text, capsys):
    """A run that was trained on ``text``."""
    folder = tmp_path / "run"
    assert main(["train", "--text", str(text), *TINY, "--output", str(folder)]) == 0
    capsys.readouterr()
    return folder


@pytest.fixture
def ptb(tmp_path):
    folder = tmp_path / "ptb"
    folder.mkdir()
    for split in SPLITS:
        (folder / f"ptb.{split}.txt").write_text(" the cat sat on the <unk> \n" * 40)
    return folder


def contents(folder) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refusal(arguments, capsys, code: int = 2) -> str:
    """The one line on stderr with which a command is refused."""
    try:
        assert main([str(argument) for argument in arguments]) == code
    except SystemExit as exit:
        assert exit.code == code
    output = capsys.readouterr()
    assert output.err.count("\n") == 1 and output.err.endswith("\n")
    assert "error: " in output.err
    return output.err


def test_train_evaluate_sample(tmp_path, text, capsys):
    folder = tmp_path / "runs" / "mine"
    assert main(["train", "--text", str(text), *TINY, "--output", str(folder)]) == 0
    output = capsys.readouterr()
    assert re.search(r"[\d,]+ / [\d,]+ / [\d,]+ tokens .*[\d,]+ types", output.out)
    assert re.search(
        r"epoch 2/2: perplexity train [\d.]+, valid [\d.]+, [\d,]+ words/s", output.err
    )
    assert str(folder) in output.out
    test = re.search(r"test perplexity ([\d.]+)", output.out)[1]
    valid = re.findall(r"^ +\d+ +[\d.]+ +[\d.]+ +([\d.]+)", output.out, re.MULTILINE)
    assert len(valid) == 2

    assert main(["evaluate", str(folder)]) == 0
    assert capsys.readouterr().out.startswith(f"test: perplexity {test} over ")
    assert main(["evaluate", str(folder), "--split", "valid", "--weights", "last"]) == 0
    assert capsys.readouterr().out.startswith(f"valid: perplexity {valid[-1]} over ")
    assert main(["evaluate", str(folder), "--text", str(text), "--backend", "rnnfast"]) == 0
    assert re.match(rf"{text}: perplexity [\d.]+ over [\d,]+ tokens\n", capsys.readouterr().out)

    command = ["sample", str(folder), "--length", "20", "--prompt", "The cat"]
    texts = []
    for seed in ("1", "1", "2"):
        assert main([*command, "--seed", seed]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith("The cat")


def test_train_by_character(tmp_path, text, capsys):
    folder = tmp_path / "run"
    options = [*TINY, "--output", str(folder)]
    assert main(["train", "--text", str(text), "--level", "char", *options]) == 0
    assert Run.open(folder).vocabulary.level == "char"
    capsys.readouterr()
    assert main(["sample", str(folder), "--length", "30"]) == 0
    assert len(capsys.readouterr().out) == 31


def test_character_outside_the_alphabet_is_refused(tmp_path, text, capsys):
    folder = tmp_path / "run"
    options = [*TINY, "--output", str(folder)]
    assert main(["train", "--text", str(text), "--level", "char", *options]) == 0
    capsys.readouterr()
    other = tmp_path / "other.txt"
    other.write_text("The cat\u00e9")
    assert "other.txt: 'é' is not in" in refusal(["evaluate", folder, "--text", other], capsys)
    assert "'é' is not in" in refusal(["sample", folder, "--prompt", "é"], capsys)


def test_train_on_a_ptb_folder_with_each_setting(tmp_path, ptb, capsys):
    folder = tmp_path / "run"
    settings = {
        "epochs": 1,
        "batch_size": 2,
        "num_steps": 3,
        "decay_after": 2,
        "lr_decay": 0.25,
        "learning_rate": 0.5,
        "max_grad_norm": 2.0,
        "seed": 9,
    }
    shape = {"hidden_size": 6, "num_layers": 3, "dropout": 0.25, "init_scale": 0.2}
    options = []
    for name, value in {**settings, **shape}.items():
        options += [f"--{name.replace('_', '-')}", str(value)]
    arguments = ["train", "--data-path", str(ptb), "--output", str(folder), *options]
    assert main([*arguments, "--backend", "torch"]) == 0
    config = Run.open(folder).config
    expected = preset("small").replace(**settings, **shape, backend="torch")
    assert config.training == expected.training
    assert config.model == expected.model
    assert (config.data.corpus, config.data.path) == ("ptb", str(ptb))


def test_flags_count_more_than_the_file_and_the_file_more_than_the_preset(tmp_path, text, capsys):
    settings = tmp_path / "settings.toml"
    settings.write_text(
        f'preset = "test"\n[data]\ncorpus = "text"\npath = "{text}"\nlevel = "char"\n'
        "[model]\nhidden_size = [6, 4]\ndropout = 0.25\n[training]\nnum_steps = 3\nbatch_size = 4\n"
    )
    folder = tmp_path / "run"
    arguments = ["train", "--config", str(settings), "--output", str(folder)]
    assert main([*arguments, "--num-steps", "5", "--cell", "gru", "--no-reset-after"]) == 0
    capsys.readouterr()
    config = Run.open(folder).config
    assert config.model == preset("test").model.__class__(
        hidden_size=(6, 4),
        num_layers=None,
        cell="gru",
        reset_after=False,
        single_bias=True,
        dropout=0.25,
    )
    assert (config.training.num_steps, config.training.batch_size) == (5, 4)
    assert config.training.max_grad_norm == preset("test").training.max_grad_norm
    assert config.data.level == "char"


def test_resume_goes_on_with_more_epochs(run, capsys):
    before = (run / "log.csv").read_text().splitlines()
    assert len(before) == 3
    assert "not with --hidden-size" in refusal(
        ["train", "--resume", run, "--hidden-size", "9"], capsys
    )
    assert main(["train", "--resume", str(run), "--epochs", "4"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^ +4 +[\d.]+ +[\d.]+ +[\d.]+", out, re.MULTILINE)
    after = (run / "log.csv").read_text().splitlines()
    assert after[:3] == before and len(after) == 5
    assert Run.open(run).config.training.epochs == 4


def test_encode_and_train_on_it(tmp_path, text, capsys):
    folder, output = tmp_path / "encoded", tmp_path / "run"
    assert main(["encode", str(text), str(folder), "--tokenizer", "char"]) == 0
    types = len(set(text.read_text()))
    assert f"{len(text.read_text()):,} tokens, {types} types" in capsys.readouterr().out
    arguments = ["train", "--encoded", str(folder), *TINY, "--output", str(output)]
    assert main(arguments) == 0
    encoded = re.search(r"test perplexity [\d.]+", capsys.readouterr().out)[0]
    arguments = ["train", "--text", str(text), "--level", "char", *TINY]
    assert main([*arguments, "--output", str(tmp_path / "other")]) == 0
    assert encoded in capsys.readouterr().out
    assert "min_count must be" in refusal(["encode", text, folder, "--min-count", "0"], capsys)
    (folder / "text.tokens").write_bytes(b"rnnfast")
    assert "no token file" in refusal(["evaluate", output], capsys)


def test_summary_of_a_run_and_of_a_preset(run, capsys):
    assert main(["summary", str(run)]) == 0
    assert "LSTM" in capsys.readouterr().out
    assert main(["summary", "--preset", "keras", "--vocab-size", "65"]) == 0
    assert "5,246,976" in capsys.readouterr().out
    assert "--vocab-size must be" in refusal(
        ["summary", "--preset", "small", "--vocab-size", "0"], capsys
    )
    assert "required" in refusal(["summary"], capsys)


def test_plot(run, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="the chart needs the extra plot")
    assert main(["plot", str(run), "--output", str(tmp_path / "chart.png")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'chart.png'}\n"
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_sample_in_its_ways(run, capsys):
    command = ["sample", str(run), "--length", "12", "--prompt", "The cat"]
    outputs = {}
    for name, options in {
        "likeliest": ["--temperature", "0"],
        "top-k": ["--top-k", "1"],
        "top-p": ["--top-p", "0.000001"],
        "beam": ["--beam", "1"],
        "three": ["--num-samples", "3"],
    }.items():
        assert main([*command, *options]) == 0
        outputs[name] = capsys.readouterr().out
    for name in ("top-k", "top-p", "beam"):
        assert outputs[name] == outputs["likeliest"]
    assert outputs["three"].count("The cat") >= 3
    assert "left out with beam" in refusal([*command, "--beam", "2", "--top-k", "3"], capsys)


def test_both_backends_print_the_same_perplexities(tmp_path, text, capsys):
    tables = []
    for backend in ("rnnfast", "torch"):
        arguments = ["train", "--text", text, *TINY, "--output", tmp_path / backend]
        assert main([*map(str, arguments), "--backend", backend]) == 0
        out = capsys.readouterr().out
        numbers = [float(n) for n in re.findall(r"(?<![\d,])\d+\.\d\d(?!\d)", out)]
        assert len(numbers) == 5
        tables.append(numbers)
    assert tables[0] == pytest.approx(tables[1], rel=1e-3, abs=0.011)


def test_a_run_is_not_overwritten_unless_asked(run, text, capsys):
    before = contents(run)
    arguments = ["train", "--text", text, *TINY, "--output", run, "--seed", "4"]
    assert "already holds a run" in refusal(arguments, capsys)
    assert contents(run) == before
    assert main([*map(str, arguments), "--overwrite"]) == 0
    assert Run.open(run).config.training.seed == 4


BAD_TRAININGS = {
    "empty file": ("--text empty.txt", "empty.txt is empty"),
    "not UTF-8": ("--text binary.txt", "binary.txt is not UTF-8"),
    "missing file": ("--text none.txt", "none.txt: No such file"),
    "short text": ("--text short.txt", "too short: .*batch_size 20 .*num_steps 2"),
    "missing split": ("--data-path no-valid", "ptb.valid.txt: No such file"),
    "missing folder": ("--data-path none", "none is not a folder"),
    "unknown preset": ("--preset huge", "--preset: invalid choice: 'huge'"),
    "bad settings": ("--config short.txt", "settings are TOML"),
    "no sizes": ("--hidden-size 8,x", "expected integers with commas between, got '8,x'"),
    "no device": ("--device tpu:0", "--device: no device 'tpu:0' here"),
    "device without numbers": ("--device meta", "--device: no device 'meta' here"),
    "not finite": ("--forget-bias nan", "forget_bias must be a finite number, got nan"),
    "undecodable path": ("--text \udcff", r"path must be a name that UTF-8 holds"),
    "no splits": ("--splits 1:2:x", "expected three ranges as"),
    "unknown backend": ("--backend tf", "backend must be one of rnnfast, torch, got 'tf'"),
    "no number": ("--epochs many", "--epochs: invalid int value: 'many'"),
    "out of range": ("--dropout 1.5", "dropout must be .*, got 1.5"),
    "two texts": ("--corpus pydoc --text x", "not allowed with"),
    "level": ("--level char", "level must be left out for corpus pydoc, got 'char'"),
    "unknown option": ("--speed 9", "unrecognized arguments: --speed 9"),
}


@pytest.mark.parametrize("case", BAD_TRAININGS)
def test_bad_input_to_train_is_one_line_and_nothing_is_written(
    case, tmp_path, monkeypatch, run, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "short.txt").write_text("a few words\n" * 12)
    (tmp_path / "no-valid").mkdir()
    (tmp_path / "no-valid" / "ptb.train.txt").write_text("a b\n")
    before = contents(tmp_path)
    arguments, message = BAD_TRAININGS[case]
    for output in ("new", run):
        command = ["train", "--preset", "test", *arguments.split(), "--output", output]
        assert re.search(message, refusal([*command, "--overwrite"], capsys))
    assert contents(tmp_path) == before
    assert not (tmp_path / "new").exists()


def test_bad_runs_are_refused_in_one_line(run, ptb, capsys):
    for command in ("evaluate", "sample"):
        assert "none is not a folder" in refusal([command, run / "none"], capsys)
        assert "holds no run" in refusal([command, run.parent], capsys)
    assert "the vocabulary of" in refusal(["evaluate", run, "--data-path", ptb], capsys)
    assert "--split" in refusal(["evaluate", run, "--text", "x", "--split", "test"], capsys)
    for option, value in (("--length", "0"), ("--temperature", "-1")):
        assert option[2:] in refusal(["sample", run, option, value], capsys)
    (run.parent / "empty.txt").touch()
    assert "empty.txt is empty" in refusal(
        ["evaluate", run, "--text", run.parent / "empty.txt"], capsys
    )
    weights = run / "best.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    for command in ("evaluate", "sample"):
        assert "best.safetensors is truncated" in refusal([command, run], capsys)


def test_text_that_changed_since_is_refused(run, text, capsys):
    text.write_text(text.read_text().replace("cat", "kitten"))
    assert "is not the one that" in refusal(["evaluate", run], capsys)


def test_failure_on_the_way_has_another_code(tmp_path, text, capsys):
    arguments = ["train", "--text", text, *TINY, "--output", tmp_path / "run"]
    arguments += ["--learning-rate", "1e30", "--max-grad-norm", "1e30"]
    assert main([str(argument) for argument in arguments]) == 1
    assert "error: training diverged in epoch 1" in capsys.readouterr().err
    # What there was before the first step is there to go on from, to look at.
    assert Run.open(tmp_path / "run").checkpoint().results == ()


def test_what_takes_too_much_memory_is_one_line(text, tmp_path, capsys):
    arguments = ["train", "--text", text, *TINY, "--output", tmp_path / "run"]
    for size in ("100000000", "2147483647"):
        error = refusal([*arguments, "--hidden-size", size], capsys, code=1)
        assert "error: not enough memory: " in error
    assert "hidden_size must be" in refusal([*arguments, "--hidden-size", "9" * 20], capsys)
    assert not (tmp_path / "run").exists()


def test_a_file_whose_name_is_not_utf8(tmp_path, run, text, monkeypatch):
    stdout = io.TextIOWrapper(io.BytesIO(), "utf-8")
    monkeypatch.setattr(sys, "stdout", stdout)
    odd = text.rename(tmp_path / "\udcff.txt")
    assert main(["evaluate", str(run), "--text", str(odd)]) == 0
    assert b"\\udcff.txt: perplexity " in stdout.buffer.getvalue()


def test_output_that_nobody_reads_is_no_error(run):
    for arguments in (["sample", str(run), "--length", "5000"], ["summary", str(run)]):
        command = [sys.executable, "-m", "rnnfast", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, **pipes) as process:
            process.stdout.close()
            assert (process.stderr.read(), process.wait()) == (b"", 1)


def test_interruption_is_one_line(monkeypatch, run, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("rnnfast.language_model.commands.Run.open", interrupt)
    assert "interrupted" in refusal(["sample", run], capsys, code=130)


def test_demo_ends_with_table_paragraph_checkpoint_and_ratio(tmp_path, monkeypatch, capsys):
    tiny = preset("test").replace(hidden_size=8, num_steps=20)
    monkeypatch.setitem(PRESETS, "small", tiny)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "config.toml").write_text("an older demo")
    assert main(["demo", "--epochs", "1"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^ +1 +1 +[\d.]+ +[\d.]+ +[\d,]+$", out, re.MULTILINE)
    assert "\n  The class" in out
    assert "checkpoint: runs/demo " in out
    assert re.search(
        r"rnnfast / torch: [\d.]+ \(median of 12 pairs, half of them [\d.]+ to [\d.]+\)", out
    )
    Run.open(tmp_path / "runs" / "demo").load_model()


def test_module_runs_as_a_program(tmp_path):
    command = [sys.executable, "-m", "rnnfast", "evaluate", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"rnnfast: error: {tmp_path / 'none'} is not a folder: expected one that holds a run\n"
    )
    command = [sys.executable, "-m", "rnnfast", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    for name in ("bench", *_LANGUAGE_MODEL):
        assert name in done.stdout


def test_missing_extra_is_named_and_the_benchmark_runs():
    code = (
        "import importlib, sys, rnnfast.cli; "
        "sys.modules[sys.argv[1]] = None; "
        "[sys.modules.pop(name) for name in [*sys.modules] if 'rnnfast.language_model' in name]; "
        "main = importlib.reload(rnnfast.cli).main; "
        "assert main(['bench', '--seconds', '0.01', '--threads', '1']) == 0; "
        "sys.exit(main(['train']))"
    )
    for module in ("tqdm", "safetensors", "tomli_w"):
        command = [sys.executable, "-c", code, module]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 1
        assert "rnnfast is faster than torch.nn in " in done.stdout
        assert re.fullmatch(
            rf"rnnfast: error: .* needs? {module.replace('_', '-')}: pip install rnnfast\[lm\]\n",
            done.stderr,
        )


def test_bench(tmp_path, capsys):
    path = tmp_path / "bench.csv"
    assert main(["bench", "--seconds", "1", "--threads", "1", "--output", str(path)]) == 0
    rows = measure.read_csv(path, LayerResult)
    output = capsys.readouterr().out
    assert f"{rows[0].cpu}, {rows[0].isa}, threads: 1\n" in output
    for row in rows:
        assert row.threads == 1
        assert re.search(
            rf"^{row.shape} .*{row.cell} +{row.mode} .* {row.ratio:.2f}$", output, re.M
        )
    faster = sum(row.ratio > 1 for row in rows)
    assert f"faster than torch.nn in {faster} of {len(rows)} cases; torch.nn takes " in output
    left_out = len(quick.CASES) - len(rows)
    assert (f"too short for {left_out} more cases" in output) == (left_out > 0)


def test_bench_names_what_is_slower():
    numbers = {"outcome": "measured", "gemm_share": 0.9, "gflops": 70.0}
    case = ("rl", "LSTM", "training", 1, "auto", "torch", "2.13")
    row = functools.partial(dataclasses.replace, layer_result(*case, numbers))
    text = quick.verdict([row(ratio=4.0), row(cell="GRU", ratio=0.25, gemm_share=0.5)])
    assert "in 1 of 2 cases; torch.nn takes 1.00 times as long" in text
    assert "not faster: rl GRU training (0.25).\n" in text
    assert "70 GFLOP/s (rl LSTM training), 90% of what torch.mm reaches" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seconds", "0"], "--seconds must be positive, got 0"),
        (["--seconds", "nan"], "--seconds must be positive, got nan"),
        (["--threads", "0"], "--threads must be from 1 to "),
        (["--threads", "9999"], "the CPUs here, got 9999"),
    ],
)
def test_bench_refuses(arguments, message, capsys):
    assert message in refusal(["bench", *arguments], capsys)
