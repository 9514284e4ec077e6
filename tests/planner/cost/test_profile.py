"""A profile is found again as it was, by its own user alone; others, and what is none, are refused."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.measured import chains, costs_of, laid, plainly
from samestep.errors import PlanRefused
from samestep.planner.cost.profile import Conditions, Profile, profile_key, read_profile, write_profile

GROUND = Conditions("a machine, avx2", "2.13", 1, 4, "float32", 2, "SGD/fused", "none", False, False, "tuple")
OTHERS = {
    "machine": "another", "torch": "9", "threads": 2, "shards": 8, "precision": "bfloat16", "workers": 3,
    "optimizer": "Adam/fused", "codec": "int8:256@1", "clip": True, "sync_batchnorm": True, "data": "Parquet",
}  # fmt: skip


@given(st.data())
def test_a_profile_is_stable_as_text(data: st.DataObject) -> None:
    chain = data.draw(chains())
    profile = Profile(GROUND, chain, data.draw(costs_of(chain)), "job", profile_key(GROUND, chain))
    assert Profile.parse(profile.text(), "here") == profile


def some() -> Profile:
    chain = laid("mlp", "data").chain
    return Profile(GROUND, chain, plainly(chain), "mlp", profile_key(GROUND, chain))


def test_it_is_found_again_and_is_for_this_user_only(tmp_path: Path) -> None:
    file = tmp_path / "cache" / "profile.json"
    assert read_profile(file) is None
    write_profile(some(), file)
    assert read_profile(file) == some()
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in file.parent.iterdir()] == ["profile.json"], "nothing half-written is left"


def test_every_field_of_the_ground_counts() -> None:
    assert set(OTHERS) == {field.name for field in dataclasses.fields(Conditions)}
    profile = some()
    profile.check(GROUND, profile.of, "here")
    for name, value in OTHERS.items():
        other = dataclasses.replace(GROUND, **{name: value})  # type: ignore[arg-type]
        assert profile_key(other, profile.chain) != profile.of
        with pytest.raises(PlanRefused) as refused:
            profile.check(other, profile.of, "--profile x")
        assert f"--profile x was measured with {name} {getattr(GROUND, name)}, this run has {value}" in str(refused)


def test_another_jobs_profile_is_refused_with_both_sides() -> None:
    other = laid("cnn", "data").chain
    with pytest.raises(PlanRefused) as refused:
        some().check(GROUND, profile_key(GROUND, other), "--profile x")
    assert some().of in str(refused.value)
    assert profile_key(GROUND, other) in str(refused.value)


@given(
    st.one_of(st.text(), st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5).map(json.dumps))
)
def test_what_is_no_profile_is_refused_with_its_name(text: str) -> None:
    with pytest.raises(PlanRefused, match=r"x\.json is no profile"):
        Profile.parse(text, "x.json")


@given(st.data())
def test_a_profile_that_lacks_something_is_refused(data: st.DataObject) -> None:
    fields = json.loads(some().text())
    place = fields
    while True:
        name = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[name], dict) or not place[name] or data.draw(st.booleans()):
            break
        place = place[name]
    del place[name]
    if name in ("why_whole",) or place is fields.get("chain", {}).get("why_whole"):
        return
    with pytest.raises(PlanRefused, match=r"x\.json is no profile"):
        Profile.parse(json.dumps(fields), "x.json")


def test_another_format_and_what_is_no_text_are_refused(tmp_path: Path) -> None:
    fields = json.loads(some().text()) | {"format": 1}
    with pytest.raises(PlanRefused, match="a profile of format 1, this version reads 3: remove it"):
        Profile.parse(json.dumps(fields), "x.json")
    file = tmp_path / "profile.json"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanRefused, match="cannot be read as a profile"):
        read_profile(file)
    with pytest.raises(PlanRefused, match="cannot be read as a profile"):
        read_profile(tmp_path)
