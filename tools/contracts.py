#!/usr/bin/env python3
"""Keeps protos/, gen/ and protos/released.binpb in step.

    contracts.py generate   rewrite gen/ from protos/
    contracts.py check      gen/ is current; sources are formatted; lint; nothing released is broken
    contracts.py release    record the present contracts as the ones that must not be broken

Needs the dev environment (`make setup-dev`), and no network: buf's own registry is never asked.
"""

import argparse
import importlib.resources
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc
from protovalidate._gen.buf.validate import validate_pb

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "protos"
GENERATED = ROOT / "gen"
RELEASED = SOURCES / "released.binpb"
# The programs installed beside this interpreter, whether or not the environment is activated.
PROGRAMS = Path(sys.executable).parent

VALIDATE = "buf/validate/validate.proto"
# google/protobuf/*.proto as protoc knows them.
WELL_KNOWN = importlib.resources.files("grpc_tools") / "_proto"


class Failed(Exception):
    """A step said no; the message is what to show."""


def _protoc(validate_set: Path, *arguments: str) -> None:
    command = [
        "protoc",
        f"--proto_path={SOURCES}",
        f"--proto_path={WELL_KNOWN}",
        f"--descriptor_set_in={validate_set}",
        f"--plugin=protoc-gen-mypy={PROGRAMS / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={PROGRAMS / 'protoc-gen-mypy_grpc'}",
        *arguments,
    ]
    if protoc.main(command) != 0:
        raise Failed("protoc refused the contracts; its messages are above.")


def _write_validate(path: Path) -> None:
    """Write buf/validate/validate.proto as a descriptor set.

    protovalidate 2 ships neither that file nor a Python module made from it, and buf would fetch it
    from its registry. The wheel does carry the descriptor, so the rules we compile against are
    always those of the library that applies them.
    """
    validate = FileDescriptorProto.FromString(validate_pb.desc().proto.to_binary())
    path.write_bytes(FileDescriptorSet(file=[validate]).SerializeToString(deterministic=True))


def _sources() -> list[str]:
    found = sorted(path.relative_to(SOURCES).as_posix() for path in SOURCES.rglob("*.proto"))
    if not found:
        raise Failed("No .proto file under protos/.")
    return found


def _image(path: Path, *options: str) -> Path:
    """Compile every contract and what it imports into one descriptor set."""
    with tempfile.TemporaryDirectory() as scratch:
        validate_set = Path(scratch, "validate.binpb")
        _write_validate(validate_set)
        _protoc(validate_set, "--include_imports", f"-o{path}", *options, *_sources())
    return path


def _generate(out: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        validate_set = Path(scratch, "validate.binpb")
        _write_validate(validate_set)
        image = _image(Path(scratch, "image.binpb"))
        described = FileDescriptorSet.FromString(image.read_bytes())
        # The grpc generators write a module full of nothing for a file without services.
        services = {file.name for file in described.file if file.service}
        sources = _sources()
        _protoc(validate_set, f"--python_out={out}", f"--mypy_out=quiet:{out}", *sources, VALIDATE)
        if with_services := [source for source in sources if source in services]:
            _protoc(
                validate_set,
                f"--grpc_python_out={out}",
                # Every client and servant here is asyncio.
                f"--mypy_grpc_out=quiet,only_async:{out}",
                *with_services,
            )
    for package in sorted(path for path in out.iterdir() if path.is_dir()):
        (package / "__init__.py").touch()
        (package / "py.typed").touch()


def _tree(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): path.read_text()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def generate() -> None:
    """Bring gen/ up to date, touching only what changed."""
    with tempfile.TemporaryDirectory() as scratch:
        _generate(Path(scratch))
        wanted = _tree(Path(scratch))
    present = _tree(GENERATED)
    for name in present.keys() - wanted.keys():
        (GENERATED / name).unlink()
    for name, text in wanted.items():
        if present.get(name) != text:
            path = GENERATED / name
            path.parent.mkdir(parents=True, exist_ok=True)
            # Replaced whole: a program that imports it meanwhile sees the old or the new one.
            part = path.with_name(path.name + ".part")
            part.write_text(text)
            part.replace(path)
    print(f"gen/: {len(wanted)} files.")


def _check_generated() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        _generate(Path(scratch))
        wanted = _tree(Path(scratch))
    present = _tree(GENERATED)
    wrong = sorted(
        f"  gen/{name}: {'missing' if name not in present else 'differs'}"
        for name, text in wanted.items()
        if present.get(name) != text
    )
    wrong += sorted(
        f"  gen/{name}: comes from no contract" for name in present.keys() - wanted.keys()
    )
    if wrong:
        raise Failed("gen/ is not what protos/ generates; run `make gen`:\n" + "\n".join(wrong))


def _buf(advice: str, *arguments: str | Path) -> None:
    if subprocess.run([PROGRAMS / "buf", *arguments], cwd=ROOT, check=False).returncode != 0:
        raise Failed(advice)


def _check_formatted() -> None:
    _buf("A contract is not formatted; run `make format`.", "format", "--diff", "--exit-code")


def _check_linted(image: Path) -> None:
    _buf("A contract breaks a lint rule.", "lint", image, "--config=buf.yaml")


def _check_compatible(image: Path) -> None:
    if not RELEASED.exists():
        print("No protos/released.binpb: nothing is released yet, so nothing can break.")
        return
    advice = "A released contract would break; add beside it instead, or open a new version."
    _buf(advice, "breaking", image, f"--against={RELEASED}", "--config=buf.yaml")


def check() -> None:
    """Run every check and report all that fail, not only the first."""
    with tempfile.TemporaryDirectory() as scratch:
        # buf gets a compiled image: it cannot compile the sources without asking its registry.
        image = _image(Path(scratch, "image.binpb"), "--include_source_info")
        failures = []
        for step in (
            _check_formatted,
            _check_generated,
            partial(_check_linted, image),
            partial(_check_compatible, image),
        ):
            try:
                step()
            except Failed as failed:
                failures.append(str(failed))
    if failures:
        raise Failed("\n".join(failures))
    print(f"Contracts: {len(_sources())} files are formatted, generated, linted and compatible.")


def release() -> None:
    """Record the present contracts, without comments, as released."""
    _image(RELEASED)
    print(f"{RELEASED.relative_to(ROOT)}: {RELEASED.stat().st_size} bytes.")


def main() -> int:
    """Run the command asked for; 1 when a check fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = {"generate": generate, "check": check, "release": release}
    parser.add_argument("command", choices=commands)
    try:
        commands[parser.parse_args().command]()
    except Failed as failed:
        print(failed, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
