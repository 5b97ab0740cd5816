//! Keys, as WebDriver names them.

use serde_json::{Value, json};

/// A key of the keyboard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// To the next element that takes the focus.
    Tab,
    /// Follows a link, sends a form.
    Enter,
    /// Presses a button, ticks a box.
    Space,
    /// A character.
    Char(char),
}

impl Key {
    /// The character that stands for the key. The W3C has taken them from Unicode's private area.
    fn value(self) -> char {
        match self {
            Self::Tab => '\u{E004}',
            Self::Enter => '\u{E007}',
            Self::Space => ' ',
            Self::Char(character) => character,
        }
    }

    /// The keys that write a text.
    pub fn text(text: &str) -> impl Iterator<Item = Self> {
        text.chars().map(Self::Char)
    }
}

/// The parameters of the command that presses and releases keys, one after the other.
pub fn actions(keys: impl IntoIterator<Item = Key>) -> Value {
    let actions: Vec<Value> = keys
        .into_iter()
        .flat_map(|key| {
            ["keyDown", "keyUp"].map(|kind| json!({"type": kind, "value": key.value()}))
        })
        .collect();
    json!({"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})
}
