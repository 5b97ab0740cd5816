//! The user that a command runs as.

use std::fs;

use serde::{Deserialize, Serialize};

/// What a process has to be for the system to be a user's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct User {
    pub(super) id: u32,
    pub(super) group: u32,
    /// All groups, with the one above.
    pub(super) groups: Vec<u32>,
}

/// Looks up a login, or the number of a user who has one.
///
/// # Errors
/// What is wrong, for people.
pub(super) fn find(login: &str) -> Result<User, String> {
    let read =
        |path: &str| fs::read_to_string(path).map_err(|error| format!("read {path}: {error}"));
    let (users, groups) = (read("/etc/passwd")?, read("/etc/group")?);
    find_in(login, &users, &groups)
        .ok_or_else(|| format!("there is no user {login:?} on this machine"))
}

/// `users` is as passwd(5) says, `groups` as group(5).
fn find_in(login: &str, users: &str, groups: &str) -> Option<User> {
    let users = || users.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let user = users()
        .find(|fields| fields[0] == login)
        .or_else(|| users().find(|fields| fields.get(2) == Some(&login)))?;
    let [name, _, id, group, ..] = user[..] else { return None };
    let (id, group) = (id.parse().ok()?, group.parse().ok()?);
    let mut all = vec![group];
    for line in groups.lines() {
        let fields: Vec<_> = line.split(':').collect();
        let [_, _, id, members] = fields[..] else { continue };
        if members.split(',').any(|member| member == name) {
            all.extend(id.parse::<u32>().ok().filter(|id| !all.contains(id)));
        }
    }
    Some(User { id, group, groups: all })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_the_groups_that_name_it() {
        let users = "root:x:0:0:root:/root:/bin/sh\nbot:x:1001:1002::/home/bot:/bin/sh\nbad\n\n7:x:9:9::/:\n";
        let groups = "root:x:0:\nbot:x:1002:\ndocker:x:5:ann,bot\nusers:x:6:bot\nrobot:x:8:robot\nbad:x:y:bot\n";
        let bot = User { id: 1001, group: 1002, groups: vec![1002, 5, 6] };
        for (login, expected) in [
            ("bot", Some(&bot)),
            ("1001", Some(&bot)),
            ("7", Some(&User { id: 9, group: 9, groups: vec![9] })),
            ("root", Some(&User { id: 0, group: 0, groups: vec![0] })),
            ("bo", None),
            ("bad", None),
            ("", None),
            ("x", None),
        ] {
            assert_eq!(find_in(login, users, groups).as_ref(), expected, "{login}");
        }
    }
}
