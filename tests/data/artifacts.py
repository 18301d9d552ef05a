"""Small QIIME 2 artifacts, made with zipfile."""

from __future__ import annotations

import zipfile
from pathlib import Path

UUID = "0b0a7f0e-1111-4222-8333-444455556666"


def members(type_: str, data: dict[str, bytes], format_: str = "SomeDirFmt") -> dict[str, bytes]:
    """Members of an artifact by name; `data` by name within its data folder."""
    metadata = f"uuid: {UUID}\ntype: {type_}\nformat: {format_}\n".encode()
    version = b"QIIME 2\narchive: 5\nframework: 2023.9.1\n"
    files = {"metadata.yaml": metadata, "VERSION": version, "checksums.md5": b"x\n"}
    files |= {f"data/{name}": content for name, content in data.items()}
    files |= {"provenance/metadata.yaml": metadata, "provenance/VERSION": version}
    return {f"{UUID}/{name}": content for name, content in files.items()}


def write_zip(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_artifact(path: Path, type_: str, data: dict[str, bytes]) -> Path:
    return write_zip(path, members(type_, data))
