//! What is printed for an operator: any text, and any JSON.
#![no_main]

use service::printable;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    for printed in [printable::line(&text), printable::lines(&text), printable::json(&text)] {
        assert!(!printed.contains(is_harmful), "{}", printed.escape_debug());
    }
    assert!(!printable::line(&text).contains('\n'));
    let printed = printable::line(&text);
    assert_eq!(printable::line(&printed), printed, "what is harmless stays as it is");

    let value = serde_json::Value::String(text.into_owned());
    for written in [value.to_string(), format!("{:#}", serde_json::json!({ "a": [value] }))] {
        let printed = printable::json(&written);
        let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
        assert_eq!(read(&printed), read(&written));
    }
});

/// Controls (C0 but for the line break, C1), and what changes the order or is not seen: by ranges of
/// Unicode, where the product asks the standard library.
fn is_harmful(c: char) -> bool {
    (c.is_control() && c != '\n')
        || matches!(c, '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e0001}'..='\u{e007f}')
}
