//! The page in a browser: at phone and desk widths, by keyboard, and for screen readers.

use serde_json::{Value, json};

use super::browser::Browser;
use super::harness::{emoji, scratch};
use super::server::Server;

/// Widths and heights of a phone and of a desk, each in one scheme, and what is drawn there.
const SCREENS: [((u32, u32), &str, &str, &str); 2] =
    [((390, 844), "dark", "phone", "a red heart"), ((1280, 900), "light", "desk", "a rocket")];

/// Sets the form's fields for a picture of few steps.
const FEW: &str = "$('model').value = 'turbo'; $('model').dispatchEvent(new Event('change')); \
    $('sampler').value = 'lcm'; $('sampler').dispatchEvent(new Event('change')); \
    $('steps').value = 4; $('guidance').value = 1; $('spacing').value = 'trailing'";

/// Names and roles of the page's controls, as a screen reader has them.
fn controls(browser: &mut Browser) -> Vec<(String, String)> {
    let tree = browser.call("Accessibility.getFullAXTree", json!({}));
    let nodes = tree["nodes"].as_array().expect("a list");
    let shown = nodes.iter().filter(|node| node["ignored"] == false);
    let text = |value: &Value| value["value"].as_str().unwrap_or("").to_owned();
    let controls = ["textbox", "combobox", "spinbutton", "button", "slider", "progressbar", "link"];
    let named = shown.map(|node| (text(&node["role"]), text(&node["name"])));
    named.filter(|(role, _)| controls.contains(&&**role)).collect()
}

fn expect_usable(browser: &mut Browser, screen: &str) {
    let controls = controls(browser);
    assert!(controls.len() > 10, "{controls:?}");
    for (role, name) in &controls {
        assert!(!name.is_empty(), "{screen}: a {role} has no name: {controls:?}");
    }
    let overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth";
    assert_eq!(browser.evaluate(overflow), 0, "{screen}: the page scrolls sideways");
    let small = "[...document.querySelectorAll('button, input, select')] \
        .filter((e) => e.offsetParent && e.type !== 'range' && e.offsetHeight < 40).length";
    assert_eq!(browser.evaluate(small), 0, "{screen}: a control is too small for a finger");
    assert_eq!(browser.errors, [] as [String; 0], "{screen}");
}

#[test]
fn a_picture_is_made_by_the_page_on_a_phone_and_on_a_desk() {
    let server = Server::shared();
    let mut browser = Browser::start("screens");
    for ((width, height), scheme, name, prompt) in SCREENS {
        browser.open(&format!("{}/", server.url()), (width, height), scheme);
        browser.evaluate(FEW);
        // By keyboard alone: the prompt has the focus.
        assert_eq!(browser.evaluate("document.activeElement.id"), "prompt");
        browser.call("Input.insertText", json!({ "text": prompt }));
        browser.evaluate("$('seed').value = 3");
        browser.evaluate(
            "window.previews = 0; window.said = new Set(); \
             new MutationObserver(() => previews++).observe($('picture'), { attributes: true }); \
             new MutationObserver(() => said.add($('status').textContent)) \
                 .observe($('status'), { childList: true })",
        );
        browser.press("Enter", "\r", 2);
        browser.until("!$('shown').hidden");
        assert!(browser.evaluate("previews").as_u64() > Some(2), "each step had a preview");
        browser.until("$('status').textContent.startsWith('done in')");
        let said = browser.evaluate("[...said].join('|')");
        assert!(said.as_str().expect("a text").contains(" of 4"), "{said}");
        let settings = browser.evaluate("$('settings').textContent");
        let settings = settings.as_str().expect("a text");
        assert!(settings.starts_with(&format!("prompt{prompt}")), "{settings}");
        for part in ["seed3", "steps4", "samplerlcm", "spacingtrailing"] {
            assert!(settings.contains(part), "{part} is not in {settings}");
        }
        let text = browser.evaluate("$('steps-text').textContent");
        assert!(text.as_str().expect("a text").starts_with("4 of 4 steps in"), "{text}");
        let figures = browser.evaluate("$('memory-figures').textContent");
        assert!(figures.as_str().expect("a text").matches("MiB").count() == 3, "{figures}");
        assert_eq!(browser.evaluate("$('pictures').children.length > 0"), true);
        expect_usable(&mut browser, name);
        browser.screenshot(&scratch("serve").join(format!("{name}.png")));
    }
    // The gallery is there after the page is opened anew, with the settings of each file.
    browser.open(&format!("{}/", server.url()), SCREENS[1].0, "light");
    browser.evaluate("$('pictures').querySelector('button').click()");
    browser.until("!$('shown').hidden");
    browser.evaluate("$('reuse').click()");
    assert_eq!(
        browser.evaluate("$('steps').value + $('sampler').value + $('seed').value"),
        "4lcm3"
    );
}

#[test]
fn pictures_to_begin_with_cancel_and_errors_work() {
    let server = Server::shared();
    let mut browser = Browser::start("works");
    browser.open(&format!("{}/", server.url()), SCREENS[0].0, "light");
    browser.evaluate(FEW);
    let file = std::fs::read(emoji("1.png")).expect("it is in the repository");
    let url = format!("data:image/png;base64,{}", super::api::base64(&file));
    // Policies do not let the page fetch such an address, so the bytes are given.
    let bytes = format!(
        "(async () => {{ const text = atob('{}'); \
         await beginWith(new Blob([Uint8Array.from(text, (c) => c.charCodeAt(0))])); }})()",
        url.split(',').nth(1).expect("its data")
    );
    browser.evaluate(&bytes);
    browser.evaluate("$('strength').value = 0.5; $('prompt').value = 'a pizza'; $('make').click()");
    browser.until("!$('shown').hidden");
    let settings = browser.evaluate("$('settings').textContent");
    assert!(settings.as_str().expect("a text").contains("strength0.5"), "{settings}");
    // A mask, drawn by a finger and by the keyboard.
    browser.evaluate("$('mask-canvas').scrollIntoView()");
    let middle = "(() => { const box = $('mask-canvas').getBoundingClientRect(); \
        return [box.left + box.width / 2, box.top + box.height / 2]; })()";
    let middle = browser.evaluate(middle);
    let at = |dx: f64| json!([{ "x": middle[0].as_f64().unwrap() + dx, "y": middle[1] }]);
    for (kind, points) in
        [("touchStart", at(0.0)), ("touchMove", at(30.0)), ("touchEnd", json!([]))]
    {
        let touch = json!({ "type": kind, "touchPoints": points });
        browser.call("Input.dispatchTouchEvent", touch);
    }
    browser.evaluate("$('mask-canvas').focus()");
    for key in ["ArrowDown", "ArrowDown", " "] {
        browser.press(key, "", 0);
    }
    let drawn = "[...$('mask-canvas').getContext('2d').getImageData(0, 0, 256, 256).data] \
        .filter((value, at) => at % 4 === 3 && value > 0).length";
    let drawn = browser.evaluate(drawn);
    assert!(drawn.as_u64() > Some(800), "strokes of the brush: {drawn} pixels");
    browser.evaluate("$('shown').hidden = true; $('make').click()");
    browser.until("!$('shown').hidden");
    let settings = browser.evaluate("$('settings').textContent");
    assert!(settings.as_str().expect("a text").contains("of the picture, XXH3"), "{settings}");
    browser.evaluate(
        "removePicture(); $('sampler').value = 'euler'; $('spacing').value = ''; \
         $('steps').value = 500; $('make').click()",
    );
    browser.until("$('left').textContent.includes('step')");
    assert_eq!(browser.evaluate("$('make').disabled"), true);
    browser.evaluate("$('cancel').click()");
    browser.until("$('status').textContent === 'cancelled' && !$('make').disabled");
    assert_eq!(browser.errors, [] as [String; 0]);
    browser.evaluate("make({ steps: 0 })");
    browser.until("$('error').textContent.includes('0 sampling steps')");
}
