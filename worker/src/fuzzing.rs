//! Entry points for the fuzzer in `fuzz/`. They are part of no other build.

use crate::issue::{
    diff::laws::{self, Sketch},
    state::IssueState,
};

/// Most events of a story. Longer stories find nothing that shorter ones do not.
const MAX_EVENTS: usize = 600;

/// Input: the events of one issue, three bytes each.
pub fn diff(data: &[u8]) {
    let (events, _) = data.as_chunks::<3>();
    let events: Vec<_> =
        events.iter().take(MAX_EVENTS).map(|bytes| Sketch::of_bytes(*bytes)).collect();
    laws::check_end(&events, laws::story(&events).state.as_ref());
}

/// Input: a state as the bucket may hold it. Several events are judged against it.
pub fn issue_state(data: &[u8]) {
    let Ok(state) = serde_json::from_slice::<IssueState>(data) else { return };
    let json = serde_json::to_vec(&state).expect("a state is written");
    assert_eq!(serde_json::from_slice::<IssueState>(&json).expect("own JSON"), state);
    for action in (0..11).chain([255]) {
        for (who, rest) in [(0, 0), (1, 1), (0xc3, 8), (0x1e, 0xf)] {
            laws::step(Some(&state), &Sketch::of_bytes([action, who, rest]).event(0));
        }
    }
}
