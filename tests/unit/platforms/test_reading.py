"""Platform files: what is refused and how it is said, files that tell differences, figures nobody knows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lamella.cli.app import run
from lamella.errors import ConfigError
from lamella.platforms import names, platform
from lamella.platforms.figures import Figure, figures
from lamella.platforms.reading import base_of, read_platform, text

SOURCED = 'source = "ours", date = "2026-11-22", confidence = "measured" }'


def written(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "ours.toml"
    path.write_text(content)
    return path


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[billing]", '[billing]\ncurrency = "USD"', "unknown field `currency`"),
        ('name = "openfaas"', 'name = "openfaas"\ncolour = "red"', "unknown field `colour`"),
        ("{ value = 64, source", '{ value = 64, unit = "MB", source', "unknown field `unit`"),
        ('source = "Kubernetes default cpu-cfs-quota-period", ', "", "missing required field `source`"),
        ('source = "Kubernetes default cpu-cfs-quota-period", ', 'source = " ", ', "cpu.period_ms has no source"),
        (', date = "2026-11-22", confidence', ", confidence", "missing required field `date`"),
        (', date = "2026-11-22", confidence', ', date = "last week", confidence', "'last week' is no date"),
        (', confidence = "assumed" }', " }", "missing required field `confidence`"),
        (', confidence = "assumed" }', ', confidence = "sure" }', "Invalid enum value 'sure'"),
        ("value = 64,", 'value = "64",', "Invalid enum value '64'"),
        ("value = 64,", 'value = "unknown",', "a figure that is unknown has"),
        ("value = 64,", "value = -64,", "a finite number from 0, not -64"),
        ("value = 64,", "value = inf,", "a finite number from 0, not inf"),
        ("value = 64,", "value = nan,", "a finite number from 0, not nan"),
        ("value = 64,", "value = 70000,", "min_mb 70000 is more than max_mb 16384"),
        ('coupling = "free"', 'coupling = "loose"', "Invalid enum value 'loose'"),
        ('coupling = "free"', 'coupling = "memory"', "mb_per_vcpu goes with"),
        ("base64 = false", "", "missing required field `base64`"),
        ("emulated = false", "emulated = true", "emulated at 0 MB/s"),
        ("[node]", 'kind = "instance"\n[node]', "unknown field `kind`"),
        ('name = "openfaas"', 'name = "openfaas"\nkind = "instance"', "needs .node. with usd_per_hour"),
        ("step_mb = { value = 16", "step_mb = { value = 0", "at least 1 MB"),
        ("step_mb = { value = 16", "step_mb = { value = 16.5", "memory.step_mb is 16.5: sizes are whole MB"),
        ("max_mb = { value = 16384", "max_mb = { value = 1e12", "memory is sold in 6.25e.10 sizes"),
        ("max_vcpu = { value = 4", "max_vcpu = { value = 0", "cpu.max_vcpu is 0, it must be above"),
        ("period_ms = { value = 100", "period_ms = { value = 0", "cpu.period_ms is 0"),
        ("vcpu = { value = 4", "vcpu = { value = 0", "is 0, it must be above"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_platform_is_refused_with_the_place(tmp_path: Path, old: str, new: str, said: str) -> None:
    whole = text("openfaas")
    assert old in whole
    path = written(tmp_path, whole.replace(old, new, 1))
    with pytest.raises(ConfigError, match=said) as caught:
        read_platform(path)
    assert str(path) in caught.value.message


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "missing required field"), ("memory = 3", "Expected"), ("[memory", "is not TOML"),
     ('base = "lambda"', "no platform 'lambda'")],
)  # fmt: skip
def test_other_files_are_refused(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_platform(written(tmp_path, content))


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.toml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_platform(path)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_platform(tmp_path / "bytes.toml")


def test_an_unknown_platform_is_a_config_error_with_the_names_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        platform("azure")
    assert caught.value.message == f"no platform 'azure'; there are {', '.join(names())}"
    assert caught.value.try_ == "--platform aws-lambda, or FILE.toml"


@pytest.mark.parametrize("name", names())
def test_the_catalogue_s_own_files_read_as_files(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, text(name))
    found = {p: f.number if isinstance(f, Figure) else f.answer for p, f in figures(read_platform(path))}
    assert found == {p: f.number if isinstance(f, Figure) else f.answer for p, f in figures(platform(name))}
    assert read_platform(path).name == str(path), "so that a plan for it finds it again"


def test_a_file_may_tell_only_what_differs(tmp_path: Path) -> None:
    path = written(tmp_path, f'base = "azure-flex"\n[start]\nspawn_ms = {{ value = 900, {SOURCED}\n')
    one = platform(str(path))
    assert base_of(path) == "azure-flex"
    assert one.start.spawn_ms.value == 900
    assert one.memory == read_platform(path).memory
    assert one.sizes_mb(1.0) == platform("azure-flex").sizes_mb(1.0)
    assert one.hop.latency_ms.value == platform("azure-flex").hop.latency_ms.value


def test_a_figure_nobody_knows_says_so_when_it_is_needed_and_how_to_give_it() -> None:
    figure = platform("azure-flex").start.spawn_ms
    assert not figure.known
    with pytest.raises(ConfigError, match=r"start\.spawn_ms of azure-flex is not known") as caught:
        _ = figure.value
    assert 'base = "azure-flex", with [start] and spawn_ms' in (caught.value.try_ or "")
    with pytest.raises(ConfigError, match=r"billing\.init_billed of azure-flex is not known"):
        _ = platform("azure-flex").billing.init_billed.value


def test_the_verb_lists_shows_and_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["platforms"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("aws-lambda-2021", "azure-flex"))
    assert run(["platforms", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [r["name"] for r in rows] == list(names())
    assert next(r for r in rows if r["name"] == "azure-flex")["unknown"] != []
    assert run(["platforms", "show", "aws-lambda"]) == 0
    out = capsys.readouterr().out
    assert "billing.provisioned.run_usd_per_gb_s" in out
    assert "9.7222e-06" in out
    assert run(["platforms", "show", "aws-lambda", "-o", str(tmp_path / "copy.toml")]) == 0
    assert (tmp_path / "copy.toml").read_text() == text("aws-lambda")
    assert run(["platforms", "show", "aws-lambda", "-o", str(tmp_path)]) != 0
    path = written(tmp_path, f'base = "azure-flex"\n[start]\nspawn_ms = {{ value = 900, {SOURCED}\n')
    assert run(["platforms", "check", str(path)]) == 0
    out = capsys.readouterr().out
    assert "start.spawn_ms: 900, azure-flex has unknown" in out
    assert "start.keep_alive_s is unknown: a plan that needs it fails" in out
    assert run(["platforms", "check", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["differs"] == ["start.spawn_ms"]
    assert run(["platforms", "check", str(tmp_path / "absent.toml")]) != 0
