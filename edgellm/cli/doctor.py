"""edgellm doctor: what this machine has, what the engines were built with, what is wrong and the mend."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

import click

from edgellm.cli.output import print_facts, print_json, print_words, size

SMALL_MEMORY = 1 << 30  # bytes: less leaves no room for the smallest useful model and its context
SMALL_DISK = 2 << 30
SPEEDY = {  # instruction set of the CPU -> the name llama.cpp gives it
    "avx2": "AVX2",
    "fma": "FMA",
    "f16c": "F16C",
    "dotprod": "DOTPROD",
    "i8mm": "MATMUL_INT8",
}


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Show what this machine has, what the engines were built with, and what is wrong.

    Exits with 1 when something keeps models from running.
    """
    import edgellm
    from edgellm import machine

    report: dict[str, Any] = {"machine": machine.describe(), "engines": edgellm.engines(), "state": _state()}
    report["findings"] = [*findings(report), *_settings_findings()]
    levels = {finding["level"] for finding in report["findings"]}
    if as_json:
        print_json(report)
    else:
        state = report["state"]
        folder = f"{state['folder']}, {size(state['disk_free'])} free" if state["writable"] else state["problem"]
        facts = [*_machine_facts(report["machine"]), *_engine_facts(report["engines"]), ("state folder", folder)]
        print_facts(facts)
        click.echo()
        for finding in report["findings"]:
            print_words(f"{finding['level'].upper()}: {finding['problem']}. {finding['mend']}")
            if finding["command"]:  # to be copied whole
                click.echo(f"  {finding['command']}")
        if levels <= {"note"}:
            click.echo("Nothing is wrong.")
    if "error" in levels:
        context.exit(1)


def findings(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """What is worth saying about a report, as {"level", "problem", "mend", "command"}; "command" may be empty.

    error: models cannot run. warning: they run worse than they could. note: nothing to do, unless you want to.
    """
    found = []
    for engine in report["engines"]:
        found += _engine_findings(engine, report["machine"])
    memory, state = report["machine"]["memory"], report["state"]
    if memory["total"] and memory["available"] < SMALL_MEMORY:
        limit = ", or raise the memory limit of this container" if memory["limit"] else ""
        problem = f"only {size(memory['available'])} of memory are available"
        found.append(_finding("warning", problem, f"Close other programs{limit}."))
    if not state["writable"]:
        mend = "Make it writable, or set EDGELLM_HOME to a folder that is."
        found.append(_finding("error", f"the state folder cannot be written: {state['problem']}", mend))
    elif state["disk_free"] < SMALL_DISK:
        mend = "`edgellm rm NAME` removes a model; EDGELLM_HOME moves the folder to another disk."
        found.append(_finding("warning", f"only {size(state['disk_free'])} are free where models are kept", mend))
    return found


def _engine_findings(engine: Mapping[str, Any], machine: Mapping[str, Any]) -> list[dict[str, str]]:
    if engine.get("kernel_sets", [])[:1] == ["scalar"]:
        problem = "edgellm's own engine has no kernels for the instructions of this processor"
        return [_finding("note", problem, "llama.cpp runs GGUF files instead, where it is installed.")]
    if engine["name"] != "llama.cpp":
        return []
    if "install" in engine:
        problem = (
            "llama.cpp is not installed, which GGUF files of other families, vectors from GGUF files, quantizing to"
        )
        problem += " GGUF and GPUs need"
        return [_finding("note", problem, "This compiles it for this machine:", engine["install"])]
    if "error" in engine:
        return [_finding("error", "llama.cpp does not run here", engine["error"])]
    found = []
    has = engine["features"].get("CPU", {})
    missing = [theirs for ours, theirs in SPEEDY.items() if ours in machine["features"] and has.get(theirs) != "1"]
    if missing:
        problem = f"llama.cpp was built without {', '.join(missing)}, which this CPU has"
        problem += ": models run slower than they could"
        found.append(_finding("warning", problem, "Build it on this machine:", engine["rebuild"]))
    extra = engine["extra_buffers"]
    if extra["amx"] in ("crashes", "wrong", "unproven"):
        level, mend = "warning", "Build it without AMX:"
        if extra["use"]:
            level, mend = "note", "Nothing needs to be done; this would build it without AMX:"
        found.append(_finding(level, f"in llama.cpp, {extra['reason']}", mend, engine["rebuild"]))
    return found


def _settings_findings() -> list[dict[str, str]]:
    from edgellm.cli.run import check_presets
    from edgellm.config import read_config
    from edgellm.errors import InvalidParameter

    try:
        check_presets(read_config())
    except InvalidParameter as error:
        mend = "`edgellm config --edit` opens the settings."
        return [_finding("warning", f"the settings are not right: {error}", mend)]
    return []


def _finding(level: str, problem: str, mend: str, command: str = "") -> dict[str, str]:
    return {"level": level, "problem": problem, "mend": mend, "command": command}


def _state() -> dict[str, Any]:
    """The state folder: where it is, whether it can be written, free bytes on its disk."""
    import tempfile

    from edgellm.home import home, make_folder

    folder = home()
    try:
        make_folder(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
        return {"folder": str(folder), "writable": True, "problem": "", "disk_free": shutil.disk_usage(folder).free}
    except OSError as error:
        return {"folder": str(folder), "writable": False, "problem": f"{folder}: {error.strerror}", "disk_free": 0}


def _machine_facts(machine: Mapping[str, Any]) -> list[tuple[str, str]]:
    cores, memory = machine["cores"], machine["memory"]
    why = [f"{cores['logical']} hardware threads"]
    if cores["allowed"] != cores["logical"]:
        why.append(f"{cores['allowed']} in this process's affinity mask")
    why.append(f"{cores['physical']} physical cores behind them")
    if cores["quota"] is not None:
        why.append(f"a quota of {cores['quota']:g} CPUs")
    limit = f", limit of the control group {size(memory['limit'])}" if memory["limit"] else ""
    return [
        ("CPU", machine["cpu"]),
        ("instructions", " ".join(machine["features"])),
        ("cores", f"{cores['usable']} usable: {', '.join(why)}"),
        ("memory", f"{size(memory['available'])} available of {size(memory['total'])}{limit}"),
    ]


def _engine_facts(engines: list[dict[str, Any]]) -> list[tuple[str, str]]:
    facts = []
    for engine in engines:
        lines = []
        if "package" in engine:
            lines.append(f"{engine['package']} {engine['version']}" if engine["version"] else "not installed")
        if "kernel_sets" in engine:
            first, *others = engine["kernel_sets"]
            lines.append(f"kernels: {first}; it could use {', '.join(others)}" if others else f"kernels: {first}")
        for device, features in engine.get("features", {}).items():
            on = [name if value == "1" else f"{name}={value}" for name, value in features.items() if value != "0"]
            lines.append(f"{device}: {' '.join(on)}")
        if "gpu_offload" in engine:
            found = [_device(device) for device in engine["devices"] if device["kind"] in ("gpu", "igpu")]
            lines += [f"GPU: {device}" for device in found or ["none that this build can use"]]
        if "extra_buffers" in engine:
            extra = engine["extra_buffers"]
            amx = {"absent": "not used", "ok": "used"}.get(extra["amx"], "left out")
            lines.append(f"AMX: {amx}; repacked kernels: {'on' if extra['use'] else 'off'}")
        if "kernels" in engine:
            lines.append(f"edgellm's kernels: {engine['kernels'] or 'none for this processor'}")
        facts.append((engine["name"], "\n".join(lines)))
    return facts


def _device(device: Mapping[str, Any]) -> str:
    """A GPU's names and its memory."""
    memory = f", {size(device['free'])} free of {size(device['total'])}" if device["total"] else ""
    return f"{device['name']}, {device['description']}{memory}"
