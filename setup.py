"""Builds the extension modules; the metadata stands in pyproject.toml.

CMake's job (CMakeLists.txt): the kernels, csrc/cpu and csrc/cuda, as static libraries that know
nothing of torch or Python.

This file's job: run CMake, then compile csrc/bindings with torch's builder, which knows the headers
and libraries of the torch that is installed, and link both into rnnfast._C. These bindings use
torch's stable ABI as of TORCH_TARGET, so what is built here loads in that torch and any later one.
rnnfast._eager, csrc/bindings/eager, makes short calls cheaper and is bound to the very torch it was
built with; under another it is left unused. rnnfast._cuda, csrc/bindings/cuda, is made where
csrc/cuda is compiled, and loaded under CUDA builds of torch.

Environment variables:
    RNNFAST_CUDA: `auto` (default: compile csrc/cuda where torch is a CUDA build and nvcc is on PATH
        or in CUDA_HOME), `1` (always; it is an error if nvcc is missing) or `0` (never). No GPU is
        needed.
    RNNFAST_CUDA_ARCHS: what to compile csrc/cuda for, default `80;90;100`.
    RNNFAST_WERROR: `1` treats compiler warnings as errors.
    MAX_JOBS: how many compilers run at once, default all cores.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import setuptools

SETUPTOOLS_NEEDED = 77
TORCH_TARGET = (2, 10)

try:
    import pybind11
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, include_paths
except ImportError as error:
    sys.exit(
        f"rnnfast's build needs {error.name}, which is not installed: install what "
        "[build-system] of pyproject.toml lists, or leave out --no-build-isolation."
    )

if int(setuptools.__version__.split(".")[0]) < SETUPTOOLS_NEEDED:
    sys.exit(
        f"rnnfast's build needs setuptools {SETUPTOOLS_NEEDED} or later, found "
        f"{setuptools.__version__}: pip install --upgrade setuptools."
    )
if torch.__version__ < TORCH_TARGET:
    sys.exit(f"rnnfast's build needs torch 2.10 or later, found {torch.__version__}.")


def compiles_cuda() -> bool:
    wanted = os.environ.get("RNNFAST_CUDA", "auto")
    if wanted not in ("auto", "0", "1"):
        sys.exit(f"RNNFAST_CUDA must be auto, 0 or 1, got {wanted!r}.")
    toolkits = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    places = [*(os.path.join(place, "bin") for place in toolkits if place), os.environ["PATH"]]
    found = shutil.which("nvcc", path=os.pathsep.join(places)) is not None
    return wanted == "1" or (wanted == "auto" and found and torch.version.cuda is not None)


ROOT = Path(__file__).resolve().parent
BUILD = ROOT / "build"
KERNELS = BUILD / f"kernels-{sysconfig.get_platform()}"
BINDINGS = BUILD / f"bindings-{sysconfig.get_config_var('SOABI')}-torch-{torch.__version__}"
WERROR = os.environ.get("RNNFAST_WERROR", "0") == "1"
CUDA = compiles_cuda()

# cmake and ninja may be the packages from PyPI, in an environment that is not activated.
os.environ["PATH"] = sysconfig.get_path("scripts") + os.pathsep + os.environ["PATH"]


def build_kernels() -> None:
    """Configures and compiles the static libraries; quick when nothing changed."""
    cmake, ninja = shutil.which("cmake"), shutil.which("ninja")
    if not (cmake and ninja):
        sys.exit("rnnfast's build needs cmake and ninja: pip install cmake ninja.")
    definitions = {
        "RNNFAST_CUDA": "ON" if CUDA else "OFF",
        "RNNFAST_CUDA_ARCHS": os.environ.get("RNNFAST_CUDA_ARCHS", ""),
        "RNNFAST_WERROR": "ON" if WERROR else "OFF",
        # The one that CMake remembers may have gone with an isolated build environment.
        "CMAKE_MAKE_PROGRAM": ninja,
    }
    configure = [cmake, "-S", ROOT, "-B", KERNELS, "-G", "Ninja"]
    configure += [f"-D{name}={value}" for name, value in definitions.items()]
    build = [cmake, "--build", KERNELS]
    if "MAX_JOBS" in os.environ:
        build += ["--parallel", os.environ["MAX_JOBS"]]
    for command in (configure, build):
        if subprocess.run(command).returncode != 0:
            sys.exit("rnnfast's kernels were not built: CMake failed, see the messages above.")


class BuildKernelsAndExtension(BuildExtension):
    def finalize_options(self) -> None:
        super().finalize_options()
        # An editable install would compile in a temporary folder, everything anew each time.
        self.build_temp = str(BINDINGS)

    def run(self) -> None:
        build_kernels()
        version = self.distribution.get_version()
        for module in self.extensions:
            if module.name == "rnnfast._cuda":
                include_dir, runtime = (KERNELS / "cuda_toolkit").read_text().splitlines()
                module.extra_compile_args.append(f"-isystem{include_dir}")
                module.extra_objects.append(runtime)
            module.define_macros.append(("RNNFAST_VERSION", f'"{version}"'))
        try:
            super().run()
        except RuntimeError as error:
            sys.exit(f"rnnfast's bindings were not built: {error}, see the messages above.")


def extension(
    name: str, folder: str, *, more_sources: Sequence[str] = (), **options: list
) -> CppExtension:
    """An extension of the sources in that folder under csrc."""
    # As system headers, so that warnings are about our own code only.
    system_include_dirs = [pybind11.get_include(), *include_paths()]
    sources = (ROOT / "csrc" / folder).glob("*.cpp")
    return CppExtension(
        name,
        [*sorted(str(path.relative_to(ROOT)) for path in sources), *more_sources],
        include_dirs=[str(ROOT / "csrc")],
        extra_compile_args=[
            *(f"-isystem{path}" for path in system_include_dirs),
            *("-O2", "-g0", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi"),
            *(["-Werror"] if WERROR else []),
        ],
        **options,
    )


major, minor = TORCH_TARGET
STABLE_ABI = ("TORCH_TARGET_VERSION", f"0x{major:02x}{minor:02x}000000000000")


# Next to a CPU build of torch it can be compiled all the same, to see that it compiles.
cuda_extensions = [
    extension(
        "rnnfast._cuda",
        "bindings/cuda",
        more_sources=["csrc/bindings/layer.cpp"],
        define_macros=[STABLE_ABI, ("USE_CUDA", None)],
        extra_objects=[str(KERNELS / "librnnfast_cuda.a")],
        libraries=["dl", "rt", "pthread", *(["torch_cuda"] if torch.version.cuda else [])],
    )
]

setuptools.setup(
    ext_modules=[
        extension(
            "rnnfast._C",
            "bindings",
            define_macros=[
                STABLE_ABI,
                ("RNNFAST_TORCH", f'"{torch.__version__}"'),
            ],
            extra_objects=[str(KERNELS / "librnnfast_cpu.a")],
        ),
        extension("rnnfast._eager", "bindings/eager"),
        *(cuda_extensions if CUDA else []),
    ],
    cmdclass={"build_ext": BuildKernelsAndExtension},
)
