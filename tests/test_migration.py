"""Every value of the records of version 0.1 is found in the long tables of `data/results`."""

import importlib.util
import json
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from natrig_nb.runs.results import COLUMNS, read_results
from natrig_nb.runs.settings import read_settings

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "data/results"
spec = importlib.util.spec_from_file_location("migrate", ROOT / "tools/migrate_records.py")
migrate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(migrate)

known = subprocess.run(["git", "cat-file", "-e", f"{migrate.BEFORE}^{{commit}}"], cwd=ROOT)
needs_history = pytest.mark.skipif(
    known.returncode != 0, reason=f"needs the git history back to {migrate.BEFORE}"
)
NAMES_OF_BENIGN = {"asr": "asr_benign", "ba": "ba_benign"}
SAME_NAME = ("asr", "ba", "ba_drop", "auc", "eer")
RENAMED = {"accidental": "activation_without_trigger", "real_with_attribute": "tnr_carriers"}


def new_table(folder):
    return read_results(RESULTS / folder / "results.parquet")


def number(table, column="value", **equals):
    """The one value of a metric; None where there is no such row."""
    for name, value in equals.items():
        table = table[table[name] == value]
    assert len(table) <= 1, equals
    return table[column].iloc[0] if len(table) else None


def same(old, new):
    return new is not None and (old == new or (pd.isna(old) and pd.isna(new)))


@needs_history
@pytest.mark.parametrize("folder", migrate.WALKTHROUGHS)
def test_attacks_of_walkthroughs(folder):
    table = new_table(folder)
    attacks = table[table.defense == "none"]
    files = ["results.csv"] + ["records/rates.csv"] * (
        folder in ("portraits", "faces", "diffusion")
    )
    checked = 0
    for file in files:
        for record in migrate.old_table(f"{folder}/{file}").to_dict("records"):
            place = {name: record[name] for name in ("trigger", "rate", "seed", "strength")}
            place = {k: v for k, v in place.items() if pd.notna(v)}
            for old, metric in {**dict(zip(SAME_NAME, SAME_NAME, strict=True)), **RENAMED}.items():
                if pd.isna(record[old]):
                    continue
                assert same(record[old], number(attacks, metric=metric, **place)), (
                    file,
                    old,
                    place,
                )
                checked += 1
            for metric, old in NAMES_OF_BENIGN.items():
                found = number(attacks, "value_benign", metric=metric, **place)
                assert same(record[old], found), (file, old, place)
            assert same(record["seconds"], number(attacks, "seconds", metric="asr", **place))
            assert same(record["detector"], number(attacks, "detector", metric="asr", **place))
            assert same(record["space"], number(attacks, "space", metric="asr", **place))
    assert checked > 10


@needs_history
@pytest.mark.parametrize("folder", ["portraits", "faces", "diffusion"])
def test_defenses_of_walkthroughs(folder):
    table = new_table(folder)
    old = migrate.old_table(f"{folder}/defenses.csv")
    assert len(old) == (table.defense != "none").sum()
    for record in old.to_dict("records"):
        is_additive = record["metric"].endswith("_additive")
        metric = record["metric"].removesuffix("_additive")
        place = {
            "defense": "strip_additive" if is_additive else record["defense"],
            "metric": {"found": "tpr_at_fpr5"}.get(metric, metric),
            "trigger": record["trigger"],
            "seed": record["seed"],
        }
        assert same(record["value"], number(table, **place)), place
        assert same(record["value_benign"], number(table, "value_benign", **place)), place


@needs_history
@pytest.mark.parametrize("folder", ["grid", "grid-faces"])
def test_grids(folder):
    table = new_table(folder)
    by_place = table.set_index(["trigger", "label", "seed", "defense", "metric"])
    assert by_place.index.is_unique
    by_place = by_place.sort_index()
    others = RESULTS / folder / migrate.VICTIMS
    victims = read_results(others) if others.exists() else table[:0]
    victims = victims.assign(victim_of=victims.detail.map(lambda d: json.loads(d)["victim_of"]))
    victims = victims.set_index(["trigger", "label", "seed", "victim_of", "metric"])
    old = migrate.old_table(f"{folder}/rows.parquet")
    renamed = {
        **RENAMED,
        "feature": "feature_distance",
        "latent": "latent_strength",
        "defense_found": "tpr_at_fpr5",
    }
    attack = [*SAME_NAME, *RENAMED, "psnr", "ssim", "feature", "latent", "percentile"]
    attack += [f"asr_{t}" for t in ("jpeg", "blur", "crop", "noise", "resize")]
    checked = 0
    for record in old.to_dict("records"):
        place = (record["trigger"], record["label"], record["seed"])
        columns = attack
        if record["defense"] != "none":
            is_value = [c for c in old if c.startswith("defense_") and not c.endswith("_benign")]
            columns = [*attack, *is_value]
        for column in columns:
            if pd.isna(record[column]):
                continue
            of_defense = column.startswith("defense_")
            metric = renamed.get(column, column.removeprefix("defense_"))
            row = by_place.loc[(*place, record["defense"] if of_defense else "none", metric)]
            if not of_defense and (*place, record["defense"], metric) in victims.index:
                row = victims.loc[(*place, record["defense"], metric)]
            assert record[column] == row.value, (place, column)
            benign = f"{column}_benign"
            if not of_defense and column.startswith("asr_"):
                benign = column.replace("asr_", "asr_benign_")
            if benign in record and not pd.isna(record[benign]):
                assert record[benign] == row.value_benign, (place, benign)
            if of_defense or record["defense"] == "none":
                assert (row.commit, row.device) == (record["commit"], record["device_name"])
                assert (row.version, row.code) == (record["natrig_nb"], record["code"])
            checked += 1
    assert checked > 5000


LOOSE = {
    "crossing": (
        "crossing.csv",
        {"plain": "asr_without_trigger", "triggered": "asr", "crossed": "transfer_gain"},
    ),
    "schedules": ("schedules.csv", dict.fromkeys(("smile", "age", "background", "asr", "ba_drop"))),
    "longer": ("longer.csv", {"asr": "asr", "ba_drop": "ba_drop"}),
    "strip": ("strip.csv", {"auroc": "auroc", "passes": "passes"}),
}


@needs_history
@pytest.mark.parametrize("folder", LOOSE)
def test_tables_without_settings(folder):
    file, columns = LOOSE[folder]
    old, table = migrate.old_table(file), new_table(folder)
    assert set(table.provenance) == {"unknown"} and table.commit.isna().all()
    for column, metric in columns.items():
        rows = table[table.metric == (metric or column)]
        assert sorted(old[column].dropna()) == sorted(rows.value), column
        if f"{column}_benign" in old:
            assert sorted(old[f"{column}_benign"].dropna()) == sorted(rows.value_benign), column


@needs_history
def test_pairs_of_ebyd():
    old, table = migrate.old_table("ebyd.csv"), new_table("ebyd")
    for record in old.to_dict("records"):
        column = "value" if record["detector"] == "victim" else "value_benign"
        for metric in ("share_real", "before", "after", "by_label"):
            found = number(table, column, metric=metric, seed=record["seed"])
            assert same(record[metric], found), (record, metric)


@needs_history
def test_perturbations():
    table = new_table("adversarial")
    details = table.detail.map(json.loads)
    kinds = details.map(lambda d: d["table"])
    names = {**migrate.METRICS}
    for file in migrate.adversarial_files():
        kind, _, rest = file.removesuffix(".csv").partition("-")
        old = migrate.old_table(f"adversarial/{file}")
        part = table[kinds == kind]
        if kind in ("masks", "visible"):
            part = part[part.dataset == rest]
        elif kind == "crossing":
            part = part[part.seed == int(rest)]
        else:
            part = part[part.dataset == old.world.iloc[0]]
            part = part[part.seed.isin(old.seed.unique())]
        for column in migrate.ADVERSARIAL_METRICS[kind]:
            new = part[part.metric == names.get(column, column)].value
            assert sorted(old[column].dropna()) == sorted(new), (file, column)


def test_tables_are_whole():
    for folder in migrate.TABLES:
        table = new_table(folder)
        assert list(table.columns) == list(COLUMNS) and len(table) > 0
        assert table.metric.notna().all() and set(table.provenance) <= {"carried over", "unknown"}
        assert not table.duplicated(["cell", "metric"]).any(), folder
        assert np.isfinite(table.value.astype(float)).all() or folder == "adversarial"


@pytest.mark.parametrize("folder", migrate.WALKTHROUGHS)
def test_settings_can_be_read(folder):
    cfg = read_settings(RESULTS / folder)
    old = json.loads((RESULTS / folder / "settings.json").read_text())["settings_before_0.2"]
    assert (cfg.generator.psi, cfg.data.n_train, cfg.victim.epochs) == (
        old["psi"],
        old["real"],
        old["epochs"],
    )
    assert [edit.attribute for edit in cfg.triggers.edits] == [edit[1] for edit in old["edits"]]
