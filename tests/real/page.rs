//! The page of `kiln diff --html` in a browser: what is drawn, and where.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::place::Place;

/// Runs in the page and leaves what it measured in it.
const MEASURE: &str = "<script>
const box = element => { const b = element.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom] };
const rects = [...document.querySelectorAll('rect')];
const measured = {
  rects: rects.map(r => ({ class: r.getAttribute('class'), box: box(r), fill: getComputedStyle(r).fill })),
  texts: [...document.querySelectorAll('svg text')].map(t => ({ text: t.textContent, box: box(t) })),
  paths: [...document.querySelectorAll('path')].map(p => p.getTotalLength()),
  picture: box(document.querySelector('svg')),
  width: [document.documentElement.scrollWidth, window.innerWidth],
  loaded: performance.getEntriesByType('resource').length,
};
document.documentElement.textContent = '';
document.documentElement.append('MEASURED' + JSON.stringify(measured) + 'DERUSAEM');
</script>";

fn measured(place: &Place, page: &str) -> Value {
    let copy = place.path("measured.html");
    fs::write(&copy, format!("{page}{MEASURE}")).unwrap();
    let profile = tempfile::tempdir().unwrap();
    let output = Command::new("timeout")
        .args(["60", "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--window-size=1280,900", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("file://{}", copy.display()))
        .output()
        .unwrap();
    let dom = String::from_utf8_lossy(&output.stdout);
    let text = dom.split_once("MEASURED").and_then(|(_, rest)| rest.split_once("DERUSAEM"));
    let (text, _) = text.unwrap_or_else(|| panic!("{dom}\n{}", String::from_utf8_lossy(&output.stderr)));
    serde_json::from_str(&text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")).unwrap()
}

fn sides(of: &Value) -> [f64; 4] {
    serde_json::from_value(of["box"].clone()).unwrap()
}

#[test]
fn both_models_are_drawn_and_nothing_overlaps() {
    let place = Place::with_model();
    let other = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/checkpoints/qwen3-moe-bf16");
    assert!(Path::new(other).is_dir());
    place.kiln(&format!("create demo:other {other} --quantize nvfp4")).expect(0);
    place.kiln("diff demo:int4 demo:other --html page.html").expect(4);
    let seen = measured(&place, &fs::read_to_string(place.path("page.html")).unwrap());

    let picture: [f64; 4] = serde_json::from_value(seen["picture"].clone()).unwrap();
    let is_inside = |[left, top, right, bottom]: [f64; 4]| {
        left >= picture[0] - 1.0 && top >= picture[1] - 1.0 && right <= picture[2] + 1.0 && bottom <= picture[3] + 1.0
    };
    let rects = seen["rects"].as_array().unwrap();
    assert_eq!(rects.len(), 21 + 31);
    for rect in rects {
        let [left, top, right, bottom] = sides(rect);
        assert!(is_inside(sides(rect)) && right - left > 50.0 && bottom - top > 3.0, "{rect}");
    }
    // One below the other, in each of two columns.
    for column in [&rects[..21], &rects[21..]] {
        for pair in column.windows(2) {
            assert!(
                sides(&pair[0])[3] <= sides(&pair[1])[1] + 0.01 && sides(&pair[0])[0] == sides(&pair[1])[0],
                "{pair:?}"
            );
        }
    }
    assert!(sides(&rects[0])[2] < sides(&rects[21])[0], "the columns stand apart");
    let mut colours: Vec<(&str, &str)> =
        rects.iter().map(|rect| (rect["class"].as_str().unwrap(), rect["fill"].as_str().unwrap())).collect();
    colours.sort_unstable();
    colours.dedup();
    assert_eq!(colours.iter().map(|(class, _)| *class).collect::<Vec<_>>(), ["changed", "only-there", "shared"]);
    let fills: BTreeSet<&str> = colours.iter().map(|(_, fill)| *fill).collect();
    assert_eq!(fills.len(), 3, "a colour for each: {colours:?}");
    let texts = seen["texts"].as_array().unwrap();
    assert_eq!(texts.len(), rects.len());
    assert!(texts.iter().all(|text| is_inside(sides(text))), "{texts:?}");
    let paths = seen["paths"].as_array().unwrap();
    assert!(paths.len() == 21 && paths.iter().all(|length| length.as_f64().unwrap() > 100.0), "{paths:?}");
    assert!(seen["width"][0].as_f64().unwrap() <= seen["width"][1].as_f64().unwrap(), "no scrolling sideways");
    assert_eq!(seen["loaded"], 0, "all is in the page");
}

#[test]
fn a_name_is_text_whatever_is_in_it() {
    let place = Place::with_model();
    fs::write(place.path("checkpoint/<img src=x onerror=alert(1)>&\".json"), "{}").unwrap();
    place.kiln("create demo:odd checkpoint --profile hf").expect(0);
    place.kiln("diff demo:int4 demo:odd --html page.html").expect(4);
    let seen = measured(&place, &fs::read_to_string(place.path("page.html")).unwrap());
    let texts: Vec<&str> =
        seen["texts"].as_array().unwrap().iter().map(|text| text["text"].as_str().unwrap()).collect();
    assert!(texts.contains(&"<img src=x onerror=alert(1)>&\".json"), "{texts:?}");
    assert_eq!(seen["loaded"], 0);
}
