"""Push and pull at a registry on the loopback, beside skopeo, oras and crane."""

import json
import shutil
import subprocess
from pathlib import Path

import material
from measure import Sample, Subject, once, paired
from servers import Registry, docker_registry, far_away, kiln_serve
from tables import Row, merged


class Scene:
    """A store with one model of `count` layers: an OCI layout too, which the other clients read as it is."""

    def __init__(self, kiln: str, place: Path, count: int, size: int) -> None:
        self.kiln, self.place, self.count, self.size = kiln, place, count, size
        self.store, self.out = place / "store", place / "out"
        material.blobs(place / "checkpoint", count, size)
        create = [kiln, "create", "big:v1", str(place / "checkpoint"), "--dialect", "modelpack", "--store", str(self.store)]
        subprocess.run(create, check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(place / "checkpoint")
        self.digest = json.loads((self.store / "index.json").read_text())["manifests"][0]["digest"]

    def pushes(self, registry: Registry, contents: Path) -> list[Subject]:
        """One push for each client, to a registry that has nothing: what is in `contents` goes before."""
        target, plain, trust, safe = f"{registry.host}/pushed/big:v1", registry.ca is None, *ways(registry)
        commands = {
            "kiln": [self.kiln, "push", "big:v1", target, "--store", str(self.store), "--quiet", *safe],
            "skopeo": ["skopeo", "--insecure-policy", "copy", "--quiet", *(["--dest-tls-verify=false"] if plain else []),
                       f"oci:{self.store}:big:v1", f"docker://{target}"],
            "oras": ["oras", "cp", "--from-oci-layout", *(["--to-plain-http"] if plain else ["--to-ca-file", str(registry.ca)]),
                     f"{self.store}@{self.digest}", target],
            "crane": ["crane", "push", *(["--insecure"] if plain else []), str(self.store), target],
        }

        def emptied() -> None:
            for part in contents.iterdir() if contents.exists() else ():
                shutil.rmtree(part)

        return [Subject(name, [command], emptied, trust) for name, command in commands.items()]

    def pulls(self, registry: Registry) -> list[Subject]:
        """One pull for each client into an empty place, after kiln has filled the registry."""
        source, plain, trust, safe = f"{registry.host}/filled/big:v1", registry.ca is None, *ways(registry)
        filling = [self.kiln, "push", "big:v1", source, "--store", str(self.store), "--quiet", *safe]
        subprocess.run(filling, check=True, stdout=subprocess.DEVNULL)
        layout = f"{self.out}/layout"
        commands = {
            "kiln": [self.kiln, "pull", source, "big:v1", "--store", f"{self.out}/store", "--quiet", *safe],
            "skopeo": ["skopeo", "--insecure-policy", "copy", "--quiet", *(["--src-tls-verify=false"] if plain else []),
                       f"docker://{source}", f"oci:{layout}:v1"],
            "oras": ["oras", "cp", *(["--from-plain-http"] if plain else ["--from-ca-file", str(registry.ca)]),
                     "--to-oci-layout", source, f"{layout}:v1"],
            "crane": ["crane", "pull", "--format", "oci", *(["--insecure"] if plain else []), source, layout],
        }

        def emptied() -> None:
            shutil.rmtree(self.out, ignore_errors=True)
            self.out.mkdir(parents=True)

        return [Subject(name, [command], emptied, trust) for name, command in commands.items()]


def ways(registry: Registry) -> tuple[dict[str, str], list[str]]:
    """How a client that reads the environment trusts the registry, and how kiln does."""
    if registry.ca is None:
        return {}, ["--plain-http"]
    return {"SSL_CERT_FILE": str(registry.ca)}, ["--ca", str(registry.ca)]


def against(kiln: str, place: Path, count: int, size: int, tls: bool, rounds: int) -> list[Row]:
    """Pushes to and pulls from docker-registry, all in memory (`place` should be on a tmpfs)."""
    scene = Scene(kiln, place, count, size)
    layers, way = f"{count} x {size_of(size)}", "TLS" if tls else "plain"
    with docker_registry(place / "docker", tls) as registry:
        pushed = paired(scene.pushes(registry, place / "docker/registry/docker/registry/v2"), rounds)
    shutil.rmtree(place / "docker/registry")
    with docker_registry(place / "docker", tls) as registry:
        pulled = paired(scene.pulls(registry), rounds)
    shutil.rmtree(place)
    return [
        Row([direction, way, layers, tool], sample, count * size)
        for direction, samples in (("push", pushed), ("pull", pulled))
        for tool, sample in samples.items()
    ]


def far(kiln: str, place: Path, count: int, size: int) -> list[Row]:
    """As `against`, once, over a line of 40 ms more and 200 Mbit/s for each connection."""
    scene = Scene(kiln, place, count, size)
    contents = place / "docker/registry/docker/registry/v2"
    rows = []
    with docker_registry(place / "docker", tls=False) as registry, far_away(registry, 40, 25_000_000) as line:
        for direction, subjects in (("push", scene.pushes), ("pull", scene.pulls)):
            samples = paired(subjects(line, contents) if direction == "push" else subjects(line), 1)
            rows += [Row([direction, f"{count} x {size_of(size)}", tool], sample, count * size) for tool, sample in samples.items()]
    shutil.rmtree(place)
    return rows


def served(kiln: str, place: Path, count: int, size: int, rounds: int) -> list[Row]:
    """The same client, crane, at `kiln serve` and at docker-registry. The peak is the server's."""
    scene = Scene(kiln, place, count, size)
    rows = []
    for _ in range(rounds):
        for name in ("kiln", "docker-registry"):
            for direction in ("push", "pull"):
                # A server anew each time: blobs of a push before would be mounted.
                at = place / "server"
                starting = kiln_serve(kiln, at, tls=False) if name == "kiln" else docker_registry(at, tls=False)
                with starting as registry:
                    subjects = scene.pushes(registry, at / "none") if direction == "push" else scene.pulls(registry)
                    crane = next(subject for subject in subjects if subject.name == "crane")
                    sample = once(crane)
                    rows.append(Row([direction, f"{count} x {size_of(size)}", name],
                                    Sample(sample.wall, sample.cpu, registry.peak()), count * size))
                shutil.rmtree(at)
    shutil.rmtree(place)
    return merged(rows)


def size_of(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"
