"""The native library in its smallest form, for tests of how it is built, found and loaded."""

from pathlib import Path

from esbnn_core.kernels.cpu import library

UNUSED = ("esbnn_real_conv", "esbnn_real_conv_pool", "esbnn_max_pool", "esbnn_pool_before_norm", "esbnn_program")


def units(folder: Path) -> list[tuple[Path, list[str]]]:
    """The path that every machine has, compiled fast; of real layers and programs the names alone."""
    names = folder / "names.cpp"
    visible = 'extern "C" __attribute__((visibility("default"))) void'
    names.write_text("".join(f"{visible} {name}() {{ __builtin_trap(); }}\n" for name in UNUSED))
    return [
        (source, [*library.FLAGS, "-O0"])
        for source in (library.SOURCES / "portable.cpp", library.SOURCES / "driver.cpp", names)
    ]
