"""Site profiles: written, read back, refused if changed or made for another model, and applied to a card."""

import json

import msgspec
import pytest
from tests.conftest import LIMITS, POINTS, operating_point
from tests.images import png

from pneumoscope.bundle.bundle_folder import read_bundle
from pneumoscope.bundle.card import Calibration, Intervals, OutlierSummary, Proportion, ReferenceDistribution
from pneumoscope.bundle.site_profile import SiteProfile, apply_site_profile, check_site_name, read_site_profile
from pneumoscope.core.errors import SiteProfileError, UsageError
from pneumoscope.inference.model import load_model


@pytest.fixture(scope="module")
def bundle(shared_maker):
    return shared_maker.bundle(shared_maker.root / "site profile", rejection_limits=LIMITS, operating_points=POINTS)


@pytest.fixture
def card(bundle):
    return read_bundle(bundle)[0]


@pytest.fixture
def profile(card):
    return SiteProfile(
        format=1,
        version="0.1.0",
        created="2026-01-02T03:04:05+00:00",
        name="North Clinic",
        model=card.name,
        onnx_sha256=card.onnx_sha256,
        card_sha256=card.sha256(),
        images_sha256="a" * 64,
        seen=["b" * 16, "a" * 16],
        n=300,
        patients=200,
        n_pneumonia=150,
        seed=0,
        prevalence=0.25,
        prevalence_source="stated",
        calibration=Calibration(slope=0.5, intercept=-1, method="platt", n=300, prevalence=0.25),
        intervals=Intervals(edges=(0.0,), low=(0.0, 0.4), high=(0.3, 1.0), method="venn-abers", n=300),
        operating_points={"balanced": operating_point(0.6, "youden")},
        limits={"ood_detector": 2.2},
        rejected=Proportion(value=0.01, low=0, high=0.02, n=300, method="wilson"),
        reference_distribution=ReferenceDistribution(
            deciles=tuple(i / 10 for i in range(1, 10)), n=290, n_pneumonia=140
        ),
        not_changed={"rule_out": "needs 300 accepted images with pneumonia; there are 150"},
    )


def write(profile, tmp_path):
    path = tmp_path / "site.json"
    path.write_text(profile.to_json(), encoding="utf-8")
    return path


def test_profile_is_read_back_with_its_hash(profile, tmp_path):
    path = write(profile, tmp_path)
    again = read_site_profile(path)

    assert again == msgspec.structs.replace(profile, sha256=profile.content_sha256())
    assert again.to_json() == path.read_text()
    assert again.label == f"North Clinic ({again.sha256[:8]})"


def test_profile_of_a_newer_format_is_refused(profile, tmp_path):
    path = write(profile, tmp_path)
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))

    with pytest.raises(SiteProfileError, match=r"is not a site profile: .*<= 1.*format"):
        read_site_profile(path)


@pytest.mark.parametrize("field", ["name", "seed", "limits", "operating_points", "not_changed"])
def test_changed_profile_is_refused(profile, tmp_path, field):
    path = write(profile, tmp_path)
    data = json.loads(path.read_text())
    data[field] = {"name": "South", "seed": 1, "limits": {"ood_detector": 9.9}}.get(field, {})
    path.write_text(json.dumps(data))

    with pytest.raises(SiteProfileError, match=r"was changed after it was written.* run pneumoscope accept again"):
        read_site_profile(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a site profile"),
        (b"{}", "is not a site profile: .*missing required field"),
        (b'{"format": 3}', "is not a site profile"),
        (b"\xff\xfe", "is not a site profile"),
        (b"[" * 5_000, "is not a site profile"),
        (b" " * 10_000_001, "more than 10,000,000 bytes"),
        (None, "cannot read .*No such file.*Give the file site.json"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "site.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SiteProfileError, match=message):
        read_site_profile(path)


def test_profile_with_an_invalid_value_is_not_written(profile):
    for wrong in ({"limits": {"ood_detector": float("nan")}}, {"name": ""}, {"onnx_sha256": "short"}):
        with pytest.raises(SiteProfileError, match="cannot be written"):
            msgspec.structs.replace(profile, **wrong).to_json()


def test_profile_replaces_parts_of_the_card_and_keeps_the_rest(card, profile):
    applied = apply_site_profile(card, profile)

    assert applied.calibration == profile.calibration
    assert applied.intervals == profile.intervals
    assert applied.operating_points == {**POINTS, "balanced": profile.operating_points["balanced"]}
    assert applied.rejection_limits == msgspec.structs.replace(LIMITS, max_distance=2.2, rejected=profile.rejected)
    assert applied.reference_distribution == profile.reference_distribution
    assert applied.seen == {"train": [], "validation": ["a" * 16, "b" * 16]}
    changed = {"calibration", "intervals", "operating_points", "rejection_limits", "reference_distribution", "seen"}
    for field in set(card.__struct_fields__) - changed:
        assert getattr(applied, field) == getattr(card, field)


def test_profile_without_changes_keeps_the_card(card, profile):
    empty = msgspec.structs.replace(
        profile, calibration=None, intervals=None, operating_points={}, limits={}, reference_distribution=None, seen=[]
    )
    assert apply_site_profile(card, empty) == card


def test_figures_for_other_patients_are_left_out_if_limits_change(card, profile):
    passed = Proportion(value=0.02, low=0.01, high=0.04, n=400, method="wilson")
    outliers = {"clinic": OutlierSummary(n_train=9, passed=passed)}
    limits = msgspec.structs.replace(LIMITS, outliers=outliers)
    card = msgspec.structs.replace(card, rejection_limits=limits)
    profile = msgspec.structs.replace(profile, card_sha256=card.sha256())
    assert apply_site_profile(card, profile).rejection_limits.outliers == {}
    kept = apply_site_profile(card, msgspec.structs.replace(profile, limits={})).rejection_limits
    assert kept == limits


def test_parts_that_the_card_does_not_have_are_refused(card, profile):
    aged = msgspec.structs.replace(profile, limits={"age_classifier": 0.5})
    with pytest.raises(SiteProfileError, match="changes limits that 'gray' does not have"):
        apply_site_profile(card, aged)
    other = msgspec.structs.replace(profile, operating_points={"best": operating_point(0.6, "youden")})
    with pytest.raises(SiteProfileError, match="has the operating point 'best'; 'gray' does not"):
        apply_site_profile(card, other)


@pytest.mark.parametrize("name", ["", "   ", "x" * 65, "a\nb", "a\x1b[31m"])
def test_names_that_are_empty_long_or_not_printable_are_refused(name):
    with pytest.raises(UsageError, match="1 to 64 printable characters"):
        check_site_name(name)
    check_site_name("臺北 'North' / Clinic")


def test_profile_of_another_model_or_card_is_refused(card, profile, shared_maker):
    for other in (
        msgspec.structs.replace(profile, onnx_sha256="c" * 64),
        msgspec.structs.replace(profile, card_sha256="c" * 64),
    ):
        with pytest.raises(
            SiteProfileError, match=r"was made for another model.*Run pneumoscope accept with this model"
        ):
            apply_site_profile(card, other)
    plain = read_bundle(shared_maker.bundle(shared_maker.root / "no limits"))[0]
    other = msgspec.structs.replace(profile, onnx_sha256=plain.onnx_sha256, card_sha256=plain.sha256())
    with pytest.raises(SiteProfileError, match="changes limits that 'gray' does not have"):
        apply_site_profile(plain, other)


def test_model_uses_and_names_the_profile(bundle, profile, tmp_path):
    path = write(profile, tmp_path)
    plain, site = load_model(bundle), load_model(bundle, site=path)
    before, after = plain.predict(png(126)), site.predict(png(126))

    assert (before.decision, after.decision) == ("pneumonia", "no_pneumonia")
    assert before.probability != after.probability
    assert (before.model.site, after.model.site) == ("", f"North Clinic ({profile.content_sha256()[:8]})")
    assert not before.model.matches(after.model)
    assert plain.predict(png(200)).rejection.code == "out_of_distribution"
    assert site.predict(png(200)).decision == "pneumonia"
    assert "North Clinic" in after._repr_html_()
    assert "North Clinic" in site._repr_html_()
    assert "Site profile" not in plain._repr_html_()
    assert "Sensitivity (validation)" in plain._repr_html_()
    assert type(after).from_row(after.to_row()) == after


def test_model_names_the_images_of_its_figures(bundle, profile, tmp_path):
    point = msgspec.structs.replace(profile.operating_points["balanced"], site=True)
    path = write(msgspec.structs.replace(profile, operating_points={"balanced": point}), tmp_path)

    assert "Sensitivity (site, cross-fitted)" in load_model(bundle, site=path)._repr_html_()
