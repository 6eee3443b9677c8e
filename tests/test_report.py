"""The page of scores in a real browser: the slider moves, sorting sorts, nothing is asked of the network."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import write_masks
from declouder import metrics
from declouder.breakdown import pooled_spread, spread_scores
from declouder.data.pairs import Pair
from declouder.errors import DataError, OptionError, OutputError
from declouder.evaluation import SCORES, CloudyMethod, OutputsMethod, Restored, Selection, evaluate
from declouder.report import BUDGET_BYTES, DIGITS, write_report
from declouder.report.plots import LEFT, WIDTH, distribution, reliability
from declouder.scaling import Scaling

IMAGES = 12


class Veiled(CloudyMethod):
    """Stands for a model: thins the cloud, with a reference, w and spread."""

    def describe(self, pairs: Any) -> dict[str, Any]:
        return {"kind": "model", "name": "a <b>model</b>", "samples": 3}

    def restore(self, pair: Pair, cloudy: np.ndarray, scaling: Scaling) -> Restored:
        rows = np.mgrid[: cloudy.shape[0], : cloudy.shape[1]][0] / cloudy.shape[0]
        return Restored((cloudy * 0.8).astype(np.uint8), (cloudy * 0.7).astype(np.uint8), rows, rows * 0.05)


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two methods on 12 pairs of 48 px."""
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(1)
    for kind in ("cloud", "label"):
        (folder / "FAKE" / "test" / kind).mkdir(parents=True)
    for number in range(IMAGES):
        clear = rng.integers(20, 180, (48, 48, 3), dtype=np.uint8)
        cloudy = clear + np.uint8(6 * number)
        for kind, image in (("cloud", cloudy), ("label", clear)):
            Image.fromarray(image).save(folder / "FAKE" / "test" / kind / f"{number}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(metrics.BACKBONE_VARIABLE, raising=False)
        patch.setenv("TORCH_HOME", str(folder))
        for name, method in (("model", Veiled()), ("cloudy", CloudyMethod())):
            evaluate(folder / "FAKE", method, out=folder / f"{name}.json", keep=folder / f"{name}-images")
    write_report([folder / "model.json", folder / "cloudy.json"], folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        assert not os.environ.get("DECLOUDER_NEEDS_BROWSER"), "a browser was promised and is not there"
        pytest.skip("no browser: install Debian's chromium and chromium-driver to test the report")
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium: pip install selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


@pytest.fixture
def page(browser: Any, report: Path) -> Any:
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.set_window_size(1280, 900)
    browser.get(report.as_uri())
    return browser


def _find(page: Any, selector: str) -> list[Any]:
    return page.find_elements("css selector", selector)


def _column(page: Any, table: str, column: int) -> list[str]:
    script = "return [...document.querySelectorAll(arguments[0])].map(r => r.cells[arguments[1]].dataset.v)"
    return page.execute_script(script, f"{table} tbody tr", column)


def test_the_page_asks_for_nothing_and_reports_no_error(page: Any) -> None:
    _find(page, "#more")[0].click()
    assert page.get_log("browser") == []
    asked = set()
    for entry in page.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        # On a busy machine the browser may still be loading the start page that it opened with.
        if (
            message["method"] == "Network.requestWillBeSent"
            and message["params"]["documentURL"] == page.current_url
        ):
            asked.add(message["params"]["request"]["url"].split(":")[0])
    assert "file" in asked
    assert asked <= {"file", "data"}


def test_the_slider_follows_pointer_and_keys(page: Any) -> None:
    from selenium.webdriver import ActionChains, Keys

    slider = _find(page, ".slider")[0]
    page.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", slider)
    assert slider.get_attribute("aria-valuenow") == "50"
    width = slider.size["width"]
    drag = ActionChains(page).move_to_element(slider).click_and_hold()
    drag.move_by_offset(width // 4, 0).release().perform()
    assert int(slider.get_attribute("aria-valuenow")) == pytest.approx(75, abs=2)
    bar = _find(page, ".slider .bar")[0]
    assert bar.location["x"] - slider.location["x"] == pytest.approx(0.75 * width, abs=6)
    slider.send_keys(Keys.HOME)
    assert slider.get_attribute("aria-valuenow") == "0"
    slider.send_keys(Keys.ARROW_RIGHT)
    assert slider.get_attribute("aria-valuenow") == "2"


def test_any_two_layers_can_be_compared_and_all_are_decoded(page: Any) -> None:
    card = _find(page, ".card")[0]
    left, _ = card.find_elements("css selector", "select")
    labels = [option.text for option in left.find_elements("css selector", "option")]
    wanted = {"cloudy", "clear"}
    wanted |= {f"{kind}: a <b>model</b>" for kind in ("reference", "restored", "error", "w", "spread")}
    assert wanted <= set(labels)
    before = page.execute_script("return arguments[0].querySelector('img').src", card)
    for button in card.find_elements("css selector", ".strip button"):
        if button.text.startswith("spread"):
            page.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", button)
            button.click()
    assert page.execute_script("return arguments[0].querySelector('img').src", card) != before
    decoded = "return [...document.images].every(i => i.complete && i.naturalWidth === 48)"
    assert page.execute_script(decoded)


def test_the_worst_ten_come_first_and_the_rest_on_demand(page: Any) -> None:
    names = [heading.text for heading in _find(page, ".card h3")]
    assert len(names) == 10
    hidden = "return document.getElementById('more').hidden"
    assert not page.execute_script(hidden)
    page.execute_script("document.getElementById('more').click()")
    assert len(_find(page, ".card")) == IMAGES and page.execute_script(hidden)
    psnr = "return [...document.querySelectorAll('.card')].map(c => Number(c.querySelector('dd').textContent))"
    assert page.execute_script(psnr) == sorted(page.execute_script(psnr))
    page.execute_script(
        "const way = document.getElementById('order-way');"
        "way.value = 'best'; way.dispatchEvent(new Event('change'))"
    )
    assert page.execute_script(psnr) == sorted(page.execute_script(psnr), reverse=True)


def _arranged(page: Any, **chosen: str) -> list[str]:
    """Choose in the lists over the cards; return the names on the cards that are shown."""
    for name, value in chosen.items():
        page.execute_script(
            "const list = document.getElementById(arguments[0]);"
            "list.value = arguments[1]; list.dispatchEvent(new Event('change'))",
            *(f"order-{name}", value),
        )
    return [heading.text.split()[0] for heading in _find(page, ".card h3")]


def test_cards_are_ordered_by_what_is_better_in_a_score_and_an_exact_image_is_the_best(page: Any) -> None:
    by_cloud = [str(number) for number in range(IMAGES)]  # the cloudy image of 0 equals its label
    psnr, mae = (list(metrics.DEFINITIONS).index(score) for score in ("psnr", "mae"))
    worst = _arranged(page, method="1", score=str(mae))
    assert worst == by_cloud[::-1][:10], "of an error the largest is the worst"
    assert _arranged(page, way="best") == by_cloud[:10]
    page.execute_script("document.getElementById('more').click()")
    page.execute_script("document.getElementById('more').click()")
    for way, place in (("best", 0), ("worst", -1)):
        _arranged(page, score=str(psnr), way=way)
        page.execute_script("document.getElementById('more').click()")
        card = _find(page, ".card")[place]
        assert card.text.split()[0] == "0" and "∞" in card.text, "its psnr is infinite"


def test_a_card_says_how_much_is_cloud_in_percent(page: Any, report: Path) -> None:
    cards = {card["name"]: card["cover"] for card in _payload(report)["cards"]}
    for heading in _find(page, ".card h3"):
        name, percent = re.fullmatch(r"(\d+) (\d+) % cloud", heading.text).groups()
        assert int(percent) == pytest.approx(100 * cards[name], abs=0.5)


def test_heads_say_unit_and_direction(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    for head, least in (("psnr, dB ↑", 5), ("ssim ↑", 5), ("lpips ↓", 3), ("mae ↓", 5), ("sam, ° ↓", 3)):
        assert page.count(f">{head}<") >= least, head
    assert "psnr ↑" not in page


def test_a_click_on_a_head_sorts_the_table_both_ways(page: Any) -> None:
    head = next(h for h in _find(page, "#all-images th button") if h.text.startswith("psnr"))
    column = 4  # after image, method, cover and label
    page.execute_script("arguments[0].click()", head)
    down = _column(page, "#all-images", column)
    assert down[0] == "Infinity", "the cloudy image that equals its label"
    assert [float(value) for value in down] == sorted(map(float, down), reverse=True)
    page.execute_script("arguments[0].click()", head)
    assert _column(page, "#all-images", column) == down[::-1]


def test_nothing_is_wider_than_a_phone_and_names_are_text(page: Any) -> None:
    page.set_window_size(390, 800)
    # Headless windows have a smallest width of their own, so the width is set as a phone's emulator does.
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        assert page.execute_script("return document.documentElement.scrollWidth") <= 390
        assert page.execute_script("return document.querySelectorAll('td b, option b').length") == 0
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_dark_mode_has_dark_ground_and_readable_text(page: Any) -> None:
    def brightness(prop: str) -> float:
        text = page.execute_script(f"return getComputedStyle(document.body).{prop}")
        return float(np.mean([float(part) for part in text[text.index("(") + 1 : -1].split(",")[:3]]))

    def prefer(scheme: str) -> None:
        feature = {"name": "prefers-color-scheme", "value": scheme}
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    prefer("dark")
    assert brightness("backgroundColor") < 40 and brightness("color") > 200
    prefer("light")
    assert brightness("backgroundColor") > 240 and brightness("color") < 60


def test_the_report_is_one_file_that_names_no_other(report: Path) -> None:
    text = report.read_text()
    assert "http://" not in text and "https://" not in text
    assert str(report.parent) not in text
    assert "<b>model</b>" not in text.split("<script")[0]


def test_the_methods_of_one_region_stand_together(page: Any) -> None:
    rows = "document.querySelector('#breakdown table').tBodies[0].rows"
    regions = page.execute_script(f"return [...{rows}].map(row => row.cells[0].innerText)")
    assert regions[::2] == regions[1::2]
    assert len(set(regions)) == len(regions) // 2


def test_one_image_at_two_sizes_is_two_cards(report: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.json"
    evaluate(
        Selection(report.parent / "FAKE", size_px=32), CloudyMethod(name="small"), out=small, keep=tmp_path / "kept"
    )
    write_report([report.parent / "cloudy.json", small], tmp_path / "two.html")
    payload = json.loads((tmp_path / "two.html").read_text().split('id="payload">')[1].split("</script>")[0])
    assert len(payload["cards"]) == 2 * IMAGES


def test_a_report_without_kept_images_says_how_to_keep_them(report: Path, tmp_path: Path) -> None:
    data = report.parent / "FAKE"
    evaluate(data, OutputsMethod(data / "test" / "label"), out=tmp_path / "a.json")
    write_report([tmp_path / "a.json"], tmp_path / "a.html")
    assert "--keep-images DIR" in (tmp_path / "a.html").read_text()
    with pytest.raises(OutputError, match="--overwrite"):
        write_report([tmp_path / "a.json"], tmp_path / "a.html")
    with pytest.raises(OptionError, match="no file of scores"):
        write_report([], tmp_path / "b.html")


def test_a_single_image_has_a_mean_and_no_interval(report: Path, tmp_path: Path) -> None:
    found = evaluate(Selection(report.parent / "FAKE", limit=1), CloudyMethod(), out=tmp_path / "a.json")
    assert found["interval"]["ssim"] is None and found["mean"]["ssim"] is not None
    table = (tmp_path / "a.md").read_text()
    assert f"| {found['mean']['ssim']:.4f} |" in table and "<br>" not in table
    write_report([tmp_path / "a.json"], tmp_path / "a.html")
    assert "<small>" not in (tmp_path / "a.html").read_text().split("</table>")[0]


def test_a_report_does_not_take_the_place_of_scores(report: Path) -> None:
    scores = report.parent / "model.json"
    before = scores.read_bytes()
    with pytest.raises(OptionError, match=r"does not end in \.html"):
        write_report([scores], scores, overwrite=True)
    assert scores.read_bytes() == before


def test_kept_images_that_are_gone_are_an_error(report: Path, tmp_path: Path) -> None:
    scores = tmp_path / "model.json"
    shutil.copy(report.parent / "model.json", scores)
    with pytest.raises(DataError, match="does not hold the images of"):
        write_report([scores], tmp_path / "a.html")
    shutil.copytree(report.parent / "model-images", tmp_path / "model-images")
    next((tmp_path / "model-images").rglob("restored.png")).unlink()
    with pytest.raises(DataError, match="keep the images beside their scores"):
        write_report([scores], tmp_path / "a.html")
    (tmp_path / "model-images" / "evaluation.txt").write_text("another\n")
    with pytest.raises(DataError, match="does not hold the images of"):
        write_report([scores], tmp_path / "a.html")
    scores.write_text('{"format": "declouder scores", "version": 1, "data": {}}')
    with pytest.raises(DataError, match=r"lacks method, .*images; evaluate again"):
        write_report([scores], tmp_path / "a.html")


def test_images_are_made_coarser_until_they_fit(
    report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import declouder.report as module

    assert BUDGET_BYTES < 30_000_000
    fine = report.stat().st_size
    monkeypatch.setattr(module, "BUDGET_BYTES", fine // 2)
    write_report([report.parent / "model.json", report.parent / "cloudy.json"], tmp_path / "a.html")
    assert (tmp_path / "a.html").stat().st_size < fine
    monkeypatch.setattr(module, "BUDGET_BYTES", 1000)
    with pytest.raises(DataError, match="--limit"):
        write_report([report.parent / "model.json"], tmp_path / "b.html")


def test_plots_stand_one_value_and_equal_values() -> None:
    assert "<svg" in distribution("psnr", {"one": [3.0], "none": []})
    assert "&lt;i&gt;" in distribution("psnr", {"<i>": [1.0, 2.0]})
    zero = np.zeros((4, 4))
    assert "<svg" in reliability(pooled_spread([spread_scores(zero, zero + 0.1)], samples=2, averaged=True))


def test_scores_that_were_measured_otherwise_say_so(report: Path, tmp_path: Path) -> None:
    data = report.parent / "FAKE"
    evaluate(data, CloudyMethod(), out=tmp_path / "plain.json")
    evaluate(Selection(data, size_px=24), CloudyMethod(), out=tmp_path / "small.json")
    evaluate(data, CloudyMethod(), out=tmp_path / "bright.json", data_range=(100, 1000))
    evaluate(data, CloudyMethod(), out=tmp_path / "masked.json", masks=data / "test" / "label")
    write_report(
        [tmp_path / f"{name}.json" for name in ("plain", "small", "bright", "masked")], tmp_path / "a.html"
    )
    page = (tmp_path / "a.html").read_text()
    assert page.count("<dt>measured</dt>") == 4
    for said in ("24 px wide", "range 100 to 1000", "cloud by masks ("):
        assert said in page.split("</table>")[0] and said in page.split("How it was measured")[-1]
    labels = _payload(tmp_path / "a.html")["methods"]
    assert len(set(labels)) == 4 and "range 100 to 1000" in labels[2], labels
    assert "<dt>kind</dt>" not in page
    write_report([tmp_path / "plain.json"], tmp_path / "b.html")
    alone = (tmp_path / "b.html").read_text()
    assert "range of the data type" not in alone.split("</table>")[0]
    assert "as large as they are; range of the data type; cloud by difference" in alone


def _payload(page: Path) -> dict[str, Any]:
    return json.loads(page.read_text(encoding="utf-8").split('id="payload">')[1].split("</script>")[0])


def test_methods_of_one_name_are_told_apart_by_their_files(plain, tmp_path):
    scores = [tmp_path / folder / "a.json" for folder in "xyz"]
    for path in scores:
        evaluate(plain, CloudyMethod(name="m"), out=path)
    write_report(scores, tmp_path / "a.html")
    assert _payload(tmp_path / "a.html")["methods"] == ["m", "m (a)", "m (a)'"]


def test_two_sets_of_one_name_are_told_apart(plain, tmp_path):
    other = tmp_path / "other" / "FAKE"
    shutil.copytree(plain, other)
    Image.new("RGB", (48, 40)).save(other / "test" / "label" / "3.png")
    evaluate(plain, CloudyMethod(name="m"), out=tmp_path / "a.json")
    second = evaluate(other, CloudyMethod(name="m"), out=tmp_path / "b.json")
    write_report([tmp_path / "a.json", tmp_path / "b.json"], tmp_path / "a.html")
    methods = _payload(tmp_path / "a.html")["methods"]
    assert methods == ["m, FAKE/test", f"m, FAKE/test ({second['data']['sha256'][:8]})"]
    assert len(_payload(tmp_path / "a.html")["cards"]) == 6, "of two sets no image is the same"
    write_report([tmp_path / "a.json"], tmp_path / "b.html")
    heads = [(tmp_path / name).read_text().split("</thead>")[0] for name in ("a.html", "b.html")]
    assert ["<th>data</th>" in head for head in heads] == [True, False]


class _Changed(CloudyMethod):
    """The cloudy image with a column in four 30 brighter; its spread grows from left to right."""

    def restore(self, pair: Any, cloudy: np.ndarray, scaling: Scaling) -> Restored:
        restored = cloudy.copy()
        restored[:, ::4] += 30
        spread = np.linspace(0.01, 0.011, cloudy.shape[1])[None].repeat(cloudy.shape[0], axis=0)
        return Restored(restored, spread=spread)


def _cells(page: str, after: str, row: int = 0) -> list[str]:
    """Return the texts of the cells of a row of the first table that comes after a heading."""
    body = page.split(after)[1].split("<tbody>")[1].split("</tbody>")[0]
    line = re.findall(r"<tr>(.*?)</tr>", body)[row]
    return re.findall(r"<td[^>]*>(.*?)</td>", line)


def test_the_tables_of_the_page_say_what_the_file_says(plain, tmp_path):
    for kind in ("cloud", "label"):
        Image.new("RGB", (48, 40), (90, 90, 90)).save(plain / "test" / kind / "3.png")
    mask = np.zeros((40, 48), np.uint8)
    mask[:10] = 255
    out = tmp_path / "a.json"
    found = evaluate(plain, _Changed(), out=out, masks=write_masks(tmp_path / "masks", mask))
    write_report([out], tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    spread = found["spread"]
    assert abs(spread["correlation"] - spread["rank_correlation"]) > 1e-3
    trust = [found["changed"]["mean"], None, *(spread[key] for key in ("mean", "correlation", "rank_correlation"))]
    assert _cells(page, "<h3>Trust")[1:] == ["25.0 %" if value is None else f"{value:.4f}" for value in trust]
    (row,) = spread["reliability"]
    assert _cells(page, "<summary>Reliability of")[-1] == f"{row['error'] / row['spread']:.2f}"
    first, second = (_cells(page, "<h2>All images", number) for number in (0, 1))
    assert (first[1:3], second[1:3]) == (["25 %", "flat"], ["25 %", "structured"])


def test_error_and_spread_of_all_pixels_together_are_root_mean_squares(plain, tmp_path):
    class Unsure(CloudyMethod):
        """Sure of most of an image and rightly so, and unsure of a strip that is wrong."""

        def restore(self, pair: Any, cloudy: np.ndarray, scaling: Scaling) -> Restored:
            spread = np.full(cloudy.shape[:2], 0.001)
            spread[:, :6] = 0.1
            return Restored(cloudy, spread=self.share * spread)

    for share in (1.0, 0.0):
        Unsure.share = share
        found = evaluate(plain, Unsure(), out=tmp_path / f"{share}.json")["spread"]["reliability"]
        write_report([tmp_path / f"{share}.json"], tmp_path / f"{share}.html")
        squares = [sum(row["pixels"] * row[key] ** 2 for row in found) for key in ("error", "spread")]
        ratio = f"{(squares[0] / squares[1]) ** 0.5:.2f}" if share else "–"
        page = (tmp_path / f"{share}.html").read_text(encoding="utf-8")
        assert f"Of all pixels together error / spread is {ratio};" in page


def test_an_exact_method_beside_another_has_infinite_scores_and_no_dots(plain, tmp_path):
    evaluate(plain, CloudyMethod(), out=tmp_path / "a.json")
    evaluate(plain, OutputsMethod(plain / "test" / "label"), out=tmp_path / "b.json")
    write_report([tmp_path / "a.json", tmp_path / "b.json"], tmp_path / "c.html")
    payload = _payload(tmp_path / "c.html")
    for card in payload["cards"]:
        scores = dict(zip(payload["scores"], card["scores"][1], strict=True))
        assert (scores["psnr"], scores["paper_psnr"], scores["lpips"]) == ("inf", "inf", None)
    page = (tmp_path / "c.html").read_text(encoding="utf-8")
    assert "distribution of psnr over images" in page and "distribution of lpips over images" not in page
    assert "lpips" not in page.split("<th>band</th>")[1].split("</tr>")[0]


def test_a_page_may_be_called_as_windows_calls_one_in_a_folder_that_is_made(plain, tmp_path):
    evaluate(plain, CloudyMethod(), out=tmp_path / "a.json")
    for name in ("a.HTM", "a.html"):
        write_report([tmp_path / "a.json"], tmp_path / "new" / "folder" / name)
        assert (tmp_path / "new" / "folder" / name).exists()


def test_a_score_of_zero_is_a_dot(plain, tmp_path):
    shutil.copy(plain / "test" / "label" / "3.png", plain / "test" / "cloud" / "3.png")
    evaluate(plain, CloudyMethod(), out=tmp_path / "a.json")
    write_report([tmp_path / "a.json"], tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    plots = {name: page.split(f"<figcaption>{name}")[1].split("</figure>")[0] for name in ("mae", "psnr")}
    dots = {name: plot.count("<circle") for name, plot in plots.items()}
    assert dots == {"mae": 3, "psnr": 2}, "only an infinite psnr has no place"


def _numbers(svg: str, element: str) -> list[dict[str, float]]:
    found = re.findall(rf"<{element} ([^>]*)>", svg)
    return [{key: float(value) for key, value in re.findall(r'(\w+)="(-?[\d.]+)"', each)} for each in found]


def test_the_box_of_a_plot_holds_the_middle_half_and_its_ticks_lie_within():
    svg = distribution("psnr", {"one": [3.3, 4.3, 5.3, 6.3, 7.3]})
    dots = [dot["cx"] for dot in _numbers(svg, "circle")]
    (box,) = _numbers(svg, "rect")
    assert (box["x"], box["x"] + box["width"]) == pytest.approx((dots[1], dots[3]), abs=0.2)
    ticks = [line["x1"] for line in _numbers(svg, 'line class="grid"')]
    assert len(ticks) >= 3 and min(ticks) >= LEFT and max(ticks) <= WIDTH - LEFT


@pytest.mark.parametrize("span", [1, 1.9, 2.3, 4.9, 5.2, 7.4, 9.99])
@pytest.mark.parametrize("low", [-3.0, 0.0, 0.7, 12.34])
def test_a_plot_has_three_to_six_ticks(span: float, low: float) -> None:
    svg = distribution("mae", {"one": [low, low + span]})
    assert 3 <= len(_numbers(svg, 'line class="grid"')) <= 6


def test_an_error_as_it_should_be_lies_on_the_dashed_line():
    spread = np.full((20, 20), 0.05)
    svg = reliability(pooled_spread([spread_scores(spread, 2**0.5 * spread)], samples=3, averaged=False))
    (line,), (dot,) = _numbers(svg, 'line class="ideal"'), _numbers(svg, "circle")
    assert (line["x2"], line["y2"]) == pytest.approx((dot["cx"], dot["cy"]), abs=0.2)


def _decoded(page: Path, kind: str) -> np.ndarray:
    """Return the picture of a kind on the first card."""
    payload = _payload(page)
    layer = next(layer for layer in payload["cards"][0]["layers"] if layer["kind"] == kind)
    data = payload["images"][layer["image"]].split(",")[1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)


def test_maps_are_coloured_and_pictures_are_not(report):
    dark, light = (_decoded(report, "w")[row].mean(axis=0) for row in (0, -1))
    assert np.abs(dark - [0, 0, 4]).max() < 25 and np.abs(light - [252, 253, 191]).max() < 25


def test_a_card_has_the_cloud_of_the_first_file(plain: Path, tmp_path: Path) -> None:
    masks = write_masks(tmp_path / "masks", np.zeros((40, 48), np.uint8))
    for name, folder in (("plain", None), ("masked", masks)):
        evaluate(plain, CloudyMethod(), out=tmp_path / f"{name}.json", masks=folder)
    for first, second, cover in (("plain", "masked", 1), ("masked", "plain", 0)):
        page = tmp_path / f"{first}.html"
        write_report([tmp_path / f"{first}.json", tmp_path / f"{second}.json"], page)
        assert [card["cover"] for card in _payload(page)["cards"]] == [cover] * 3


def test_a_long_name_fits_into_a_plot_by_its_ends_and_is_whole_in_its_title() -> None:
    name = "declouder 0.1, compact, " + 10 * "reference alone " + "(seed 0)"
    svg = str(distribution("psnr", {name: [30.0, 31.0], "short": [29.0]}))
    shown = re.findall(r"<text[^>]*>([^<]*)<title>([^<]*)</title>", svg)
    assert shown[1] == ("short", "short") and shown[0][1] == name
    assert (
        len(shown[0][0]) < 50
        and shown[0][0].startswith("declouder 0.1, compact")
        and shown[0][0].endswith("(seed 0)")
    )


def test_what_has_no_number_comes_last_both_ways(page: Any) -> None:
    head = next(h for h in _find(page, "#all-images th button") if h.text.startswith("psnr"))
    rows = "document.querySelectorAll('#all-images tbody tr')"
    page.execute_script(f"{rows}[3].cells[4].dataset.v = ''")
    for _ in range(2):
        page.execute_script("arguments[0].click()", head)
        found = _column(page, "#all-images", 4)
        assert found[-1] == "" and "" not in found[:-1]


def test_a_card_shows_the_cloudy_image_on_the_left_and_the_restored_one_on_the_right(page: Any) -> None:
    shown = page.execute_script(
        "const payload = JSON.parse(document.getElementById('payload').textContent);"
        "const card = document.querySelector('.card');"
        "const title = card.querySelector('h3').textContent;"
        "const layers = payload.cards.find(c => title.startsWith(c.name + ' ')).layers;"
        "const kind = image => layers.find(layer => payload.images[layer.image] === image.src).kind;"
        "return [kind(card.querySelector('img.over')), kind(card.querySelector('.slider img:not(.over)'))]"
    )
    assert shown == ["cloudy", "restored"]
    facts = page.execute_script("return [...document.querySelectorAll('.card dt')].map(dt => dt.textContent)")
    assert {"psnr", "ssim", "mae"} <= {*facts} and not any(name.startswith("paper_") for name in facts)


def test_images_without_a_score_come_last_whichever_way_they_are_ordered(browser, report, tmp_path) -> None:
    evaluate(Selection(report.parent / "FAKE", limit=4), CloudyMethod(), out=tmp_path / "few.json")
    scores = json.loads((tmp_path / "few.json").read_text())
    whole = json.loads((report.parent / "cloudy.json").read_text())
    scores["data"] = whole["data"]  # as of a set of which only some images were scored
    (tmp_path / "few.json").write_text(json.dumps(scores))
    write_report([report.parent / "model.json", tmp_path / "few.json"], tmp_path / "a.html")
    browser.get((tmp_path / "a.html").as_uri())
    names = {row["name"] for row in scores["images"]}
    for way in ("worst", "best"):
        assert {*_arranged(browser, method="1", way=way)[:4]} == names


def _cell_of(value: float | None, score: str) -> str:
    return "–" if value is None else f"{value:.{DIGITS[score]}f}"


def test_each_score_of_a_part_stands_in_its_own_column(plain, tmp_path):
    found = evaluate(plain, _Changed(), out=tmp_path / "a.json")
    write_report([tmp_path / "a.json"], tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    for number, (name, part) in enumerate(found["regions"].items()):
        wanted = [_cell_of(part[score], score) for score in ("psnr", "ssim", "mae")]
        assert _cells(page, "<h3>By place in the image", number) == [name, str(part["images"]), *wanted]
    groups = {name: group for name, group in found["groups"].items() if group["images"]}
    assert len(groups) < len(found["groups"])
    for number, (name, group) in enumerate(groups.items()):
        cells = _cells(page, "<h3>By kind of image", number)
        assert cells[2:] == [_cell_of(group["mean"][score], score) for score in SCORES]
        assert (cells[0].replace("&lt;", "<"), cells[1]) == (name, str(group["images"]))
    for number, (name, band) in enumerate(found["bands"].items()):
        known = [score for score in ("psnr", "ssim", "mae") if band.get(score) is not None]
        cells = _cells(page, "<h3>By band", number)
        assert cells[0] == name and {_cell_of(band[score], score) for score in known} <= {*cells[1:]}


def test_a_mean_says_its_interval_and_of_how_many_images_it_is(plain, tmp_path):
    shutil.copy(plain / "test" / "label" / "3.png", plain / "test" / "cloud" / "3.png")
    found = evaluate(plain, CloudyMethod(), out=tmp_path / "a.json", data_range=1000)
    write_report([tmp_path / "a.json"], tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    first = page.split("</table>")[0]
    low, high = found["interval"]["mae"]
    assert low < high and f"<small>{low:.4f} to {high:.4f}</small>" in first
    assert "<small>of 2 images</small>" in first and "of 3 images" not in first, "an exact image has no psnr"
    assert ("no LPIPS (" in page.split("<h2>Breakdown")[0]) == (not found["lpips"]["available"])
    assert "bands red, green, blue; as large as they are; range 0 to 1000; cloud by difference" in page


def test_a_band_that_one_of_two_files_lacks_has_one_row(plain, tmp_path):
    scores = evaluate(plain, CloudyMethod(name="three"), out=tmp_path / "a.json")
    scores["bands"]["nir"] = scores["bands"]["red"]
    scores["method"]["name"] = "four"
    (tmp_path / "b.json").write_text(json.dumps(scores))
    write_report([tmp_path / "a.json", tmp_path / "b.json"], tmp_path / "c.html")
    bands = (tmp_path / "c.html").read_text(encoding="utf-8").split("<h3>By band")[1].split("</table>")[0]
    assert re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td>", bands)[-2:] == [("blue", "four"), ("nir", "four")]


def test_pictures_that_methods_share_are_there_once_and_a_single_method_is_not_named(report, tmp_path):
    for card in _payload(report)["cards"]:
        kinds = [layer["kind"] for layer in card["layers"]]
        assert kinds.count("cloudy") == kinds.count("clear") == 1 and kinds.count("restored") == 2
    write_report([report.parent / "model.json"], tmp_path / "a.html")
    for card in _payload(tmp_path / "a.html")["cards"]:
        assert all(layer["label"] == layer["kind"] for layer in card["layers"])


def test_a_larger_spread_lies_further_right_and_a_larger_error_higher_up():
    spread = np.repeat([0.01, 0.05, 0.1], 20)[None]
    svg = reliability(pooled_spread([spread_scores(spread, 2 * spread)], samples=3, averaged=False))
    places = [(dot["cx"], -dot["cy"]) for dot in _numbers(svg, "circle")]
    assert [x for x, _ in places] == sorted({x for x, _ in places})
    assert [y for _, y in places] == sorted({y for _, y in places})
