"""The report in a browser: light and dark, as wide as a desk and a phone; skipped where Chromium is missing."""

import html
import json
import re
import shutil
import subprocess

import pytest

from neoplug.studies.report.page import write_report

from .written import write_study

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS = {"desk": 1280, "phone": 390}
SCHEMES = {"dark": 0, "light": 1}  # numbers of Blink's setting
MEASURE = """
<script>
const rgba = (text) => {
  const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
  return { r, g, b, a };
};
const over = (front, back) => {
  const mix = (channel) => front[channel] * front.a + back[channel] * (1 - front.a);
  return { r: mix("r"), g: mix("g"), b: mix("b"), a: 1 };
};
const luminance = ({ r, g, b }) => {
  const [x, y, z] = [r, g, b].map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
const contrast = (one, other) => {
  const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
};
function background(element) {
  const layers = [];
  for (let at = element; at; at = at.parentElement) layers.push(rgba(getComputedStyle(at).backgroundColor));
  return layers.reverse().reduce((back, front) => over(front, back), { r: 255, g: 255, b: 255, a: 1 });
}
function shapes(svg) {
  return [...svg.querySelectorAll("path")].map((path) => {
    const style = getComputedStyle(path);
    if (style.fill === "none" || path.closest("defs")) return null;
    const colour = rgba(style.fill);
    colour.a *= Number(style.fillOpacity) * Number(style.opacity);
    return { path, colour, box: path.getBoundingClientRect() };
  }).filter(Boolean);
}
const found = { texts: 0, weak: [], cut: [] };
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
const known = new Map();
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.textContent.trim() || element.closest("script, style")) continue;
  const style = getComputedStyle(element), svg = element.closest("svg");
  let back = background(svg ? svg.parentElement : element);
  if (svg) {
    if (!known.has(svg)) known.set(svg, shapes(svg));
    const box = element.getBoundingClientRect(), x = (box.left + box.right) / 2, y = (box.top + box.bottom) / 2;
    for (const { path, colour, box: area } of known.get(svg)) {
      const before = path.compareDocumentPosition(element) & Node.DOCUMENT_POSITION_FOLLOWING;
      if (before && area.left <= x && x <= area.right && area.top <= y && y <= area.bottom) back = over(colour, back);
    }
    const frame = svg.getBoundingClientRect();
    if (box.left < frame.left - 1 || box.right > frame.right + 1) found.cut.push(element.textContent);
  }
  const ratio = contrast(over(rgba(svg ? style.fill : style.color), back), back);
  found.texts += 1;
  // WCAG 2.2, success criterion 1.4.3
  if (ratio < 4.5) found.weak.push([element.textContent.slice(0, 40), ratio]);
}
found.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
found.width = innerWidth;
found.dark = matchMedia("(prefers-color-scheme: dark)").matches;
const unlabelled = "figure [role=img]:not([aria-label]), figure:not(:has([role=img]))";
found.unlabelled = document.querySelectorAll(unlabelled).length;
found.resources = performance.getEntriesByType("resource").length;
const table = document.querySelector("#scores table"), button = table.querySelectorAll("th button")[2];
const means = () => [...table.tBodies[0].rows].map((row) => Number(row.cells[2].textContent));
button.click();
found.ascending = means();
button.click();
found.descending = means();
found.sorted = table.querySelectorAll("th")[2].getAttribute("aria-sort");
location.hash = document.querySelector("#scores td a").hash;
light();
found.lit = document.querySelectorAll("tr.lit").length;
document.body.append(Object.assign(document.createElement("pre"), { id: "found", textContent: JSON.stringify(found) }));
</script>
"""
FRAME = """<!doctype html><meta name="color-scheme" content="light dark"><style>body {{ margin: 0 }}</style>
<iframe style="border: 0" width="{width}" height="900" srcdoc="{page}"></iframe><pre id="out"></pre>
<script>
const inside = () => document.querySelector("iframe").contentDocument;
onload = () => {{ out.textContent = inside().getElementById("found").textContent; }};
</script>"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: the report is not looked at")


def browse(file, profile, *options):
    """Open a file in Chromium; return stdout, and what the page wrote to the console."""
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
               f"--user-data-dir={profile}", *options, file.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return done.stdout, re.findall(r"CONSOLE.*", done.stderr)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Return the report of a study with every plot and a failed run."""
    folder = write_study(tmp_path_factory.mktemp("chromium") / "study", failed=[("moslora", "neo", 3)])
    return write_report(folder)[0]


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    return tmp_path_factory.mktemp("profile")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("device", WIDTHS)
def test_all_text_can_be_read_and_nothing_overflows(report, profile, tmp_path, device, scheme):
    page = report.read_text(encoding="utf-8")
    measured = re.sub(r"<meta http-equiv=.*?>\n", "", page).replace("</body>", MEASURE + "</body>")
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(width=WIDTHS[device], page=html.escape(measured)), encoding="utf-8")
    setting = f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}"
    out, console = browse(frame, profile, setting, "--window-size=1400,1000", "--dump-dom")
    assert not console
    found = json.loads(html.unescape(re.search(r'<pre id="out">(.*?)</pre>', out, re.DOTALL)[1]))
    assert (found["width"], found["dark"]) == (WIDTHS[device], scheme == "dark")
    assert found["overflow"] <= 0
    assert found["texts"] > 1000
    assert not found["weak"]
    assert not found["cut"]
    assert found["unlabelled"] == 0
    assert found["resources"] == 0
    assert found["ascending"] == sorted(found["ascending"])
    assert found["descending"] == found["ascending"][::-1]
    assert found["sorted"] == "descending"
    assert found["lit"] == 13  # 8 runs of the search and 5 test runs of an arm


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_page_as_it_is_writes_nothing_to_the_console(report, profile, tmp_path, scheme):
    from PIL import Image, ImageStat

    picture = tmp_path / "page.png"
    setting = f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}"
    _, console = browse(report, profile, setting, "--window-size=1280,2000", f"--screenshot={picture}")
    assert not console
    with Image.open(picture) as image:
        assert image.size == (1280, 2000)
        brightness = ImageStat.Stat(image.convert("L")).median[0]
    assert brightness < 64 if scheme == "dark" else brightness > 192


def test_its_script_runs_and_no_other_does(report, profile, tmp_path):
    out, _ = browse(report, profile, "--dump-dom")
    assert out.count("<th scope") == out.count("<button type") > 50
    changed = tmp_path / "changed.html"
    changed.write_text(
        report.read_text(encoding="utf-8").replace("</main>", "<script>document.title = 'foreign'</script></main>"),
        encoding="utf-8",
    )
    out, console = browse(changed, profile, "--dump-dom")
    assert "<title>foreign" not in out
    assert any("Content Security Policy" in line for line in console)
