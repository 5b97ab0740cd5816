//! `coordinator up` on a machine with other users, and in a directory where somebody else has put
//! files.

use std::{
    fs::{Permissions, set_permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use async_nats::ConnectOptions;
use serde_json::{Value, json};
use tests::{
    nats::{self, Nats},
    process::Process,
    temp_dir,
};

const EXE: &str = env!("CARGO_BIN_EXE_process-under-test");

/// Starts the program with these arguments from a shell that runs `first` before it.
fn start_after(first: &str, args: &[&str], environment: &[(&str, &str)]) -> Process {
    let script = format!("{first} && exec \"$0\" \"$@\"");
    let args = [&[script.as_str(), EXE], args].concat();
    Process::start(Path::new("/bin/sh"), "-c", &args, environment)
}

fn up(data: &Path) -> Vec<&str> {
    let data = data.to_str().expect("UTF-8");
    let ports = ["--port", "0", "--operator-port", "0", "--nats-port", "0"];
    [&["up", "--data-dir", data][..], &ports].concat()
}

/// Starts everything on one machine; returns its log line once it runs.
async fn start(data: &Path) -> (Process, Value) {
    let process = start_after("true", &up(data), &[]);
    let told = runs(&process).await;
    (process, told)
}

async fn runs(process: &Process) -> Value {
    let line = process.line_with("\"coordinator runs\"").await;
    serde_json::from_str(&line).expect("a JSON log line")
}

async fn stop(mut process: Process) {
    process.signal("TERM");
    assert_eq!(process.exited().await.code(), Some(0), "{}", process.output());
}

/// Runs a command to its end; returns its exit code and its output.
async fn command(args: &[&str]) -> (Option<i32>, String) {
    let mut process = Process::start(Path::new(EXE), args[0], &args[1..], &[]);
    let code = process.exited().await.code();
    (code, process.output().trim_end().to_owned())
}

fn read(file: PathBuf) -> String {
    let text = std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    String::from_utf8_lossy(&text).into_owned()
}

fn mode(path: &Path) -> u32 {
    path.metadata().expect("metadata").permissions().mode() & 0o7777
}

/// All that is in a directory, and itself, with its mode.
fn modes(dir: &Path) -> Vec<(PathBuf, u32)> {
    let entries = std::fs::read_dir(dir).expect("a directory").flatten().map(|entry| entry.path());
    let found = entries.flat_map(|path| match path.is_dir() {
        true => modes(&path),
        false => vec![(path.clone(), mode(&path))],
    });
    [(dir.to_owned(), mode(dir))].into_iter().chain(found).collect()
}

#[tokio::test]
async fn only_who_can_read_the_password_gets_to_the_broker() {
    let dir = temp_dir();
    let data = dir.path().join("data");
    let (process, told) = start(&data).await;
    let url = told["nats_url"].as_str().expect("URL");
    ConnectOptions::new().connect(url).await.expect_err("anybody");
    let password_file = data.join("nats-password");
    assert_eq!(told["nats_user"], "local");
    assert_eq!(told["nats_password_file"], json!(password_file.canonicalize().expect("a path")));
    let password = read(password_file).trim().to_owned();

    let login = |user: &str, password: &str| {
        ConnectOptions::with_user_and_password(user.into(), password.into())
    };
    for (options, gets_in) in [
        (login("local", ""), false),
        (login("local", "0123"), false),
        (login("admin", &password), false),
        (ConnectOptions::with_token(password.clone()), false),
        (login("local", &password), true),
    ] {
        let client = options.connect(url).await;
        let stands = match client {
            Ok(client) => async_nats::jetstream::new(client).query_account().await.is_ok(),
            Err(_) => false,
        };
        assert_eq!(stands, gets_in);
    }

    // Our own commands find it.
    let at = data.to_str().expect("UTF-8");
    for args in [&["send", "assigned"][..], &["dead-letters"], &["create-streams"]] {
        let (code, output) = command(&[args, &["--data-dir", at]].concat()).await;
        assert_eq!(code, Some(0), "{args:?}: {output}");
    }
    let tail = Process::start(Path::new(EXE), "tail", &["--all", "--json", "--data-dir", at], &[]);
    tail.line_with("\"assigned\"").await;
    stop(process).await;
}

#[tokio::test]
async fn a_data_directory_without_a_password_gets_one_and_keeps_what_it_holds() {
    let dir = temp_dir();
    let data = dir.path().join("data");
    let at = data.to_str().expect("UTF-8");
    let (process, _) = start(&data).await;
    let (code, output) = command(&["send", "assigned", "--data-dir", at]).await;
    assert_eq!(code, Some(0), "{output}");
    let tail =
        || Process::start(Path::new(EXE), "tail", &["--all", "--json", "--data-dir", at], &[]);
    tail().line_with("\"assigned\"").await;
    stop(process).await;
    std::fs::remove_file(data.join("nats-password")).expect("as a former version left it");

    let (process, _) = start(&data).await;
    assert_eq!(read(data.join("nats-password")).trim().len(), 64);
    tail().line_with("\"assigned\"").await;
    stop(process).await;
}

#[tokio::test]
async fn a_broker_of_ones_own_needs_no_password_of_ours() {
    let nats = Nats::start().await;
    let dir = temp_dir();
    let data = dir.path().join("data");
    let process = start_after("true", &up(&data), &[("NATS_URL", &nats.url())]);
    let told = runs(&process).await;
    assert_eq!((&told["nats_user"], &told["nats_url"]), (&Value::Null, &json!(nats.url())));
    assert!(!data.join("nats-password").exists());
    let (code, output) =
        command(&["dead-letters", "--data-dir", data.to_str().expect("UTF-8")]).await;
    assert_eq!((code, output.as_str()), (Some(0), "no dead letters"));
}

#[tokio::test]
async fn a_password_stands_nowhere_but_in_its_files() {
    let dir = temp_dir();
    let data = dir.path().join("data");
    let process = start_after("true", &up(&data), &[("LOG_LEVEL", "debug")]);
    let pid = process.pid();
    runs(&process).await;
    let at = data.to_str().expect("UTF-8");
    let (code, sent) = command(&["send", "assigned", "--data-dir", at]).await;
    assert_eq!(code, Some(0), "{sent}");
    let secrets = ["nats-password", "webhook-secret"]
        .map(|name| (name, read(data.join(name)).trim().to_owned()));
    let server = read(data.join("nats-server.pid")).trim().to_owned();
    let mut seen = vec![("the output".to_owned(), process.output()), ("send".to_owned(), sent)];
    for of in [pid.to_string(), server] {
        for what in ["cmdline", "environ"] {
            let file = format!("/proc/{of}/{what}");
            seen.push((file.clone(), read(file.into())));
        }
    }
    for name in ["nats-server.log", "coordinator.json"] {
        seen.push((name.to_owned(), read(data.join(name))));
    }
    for (place, text) in seen {
        assert!(!text.is_empty(), "{place}");
        for (name, secret) in &secrets {
            assert!(!text.contains(secret.as_str()), "{name} is in {place}: {text}");
        }
    }
    stop(process).await;
}

#[tokio::test]
async fn what_is_kept_is_private_whatever_the_umask() {
    let dir = temp_dir();
    let data = dir.path().join("data");
    let process = start_after("umask 000", &up(&data), &[]);
    runs(&process).await;
    let at = data.to_str().expect("UTF-8");
    let (code, output) = command(&["send", "assigned", "--data-dir", at]).await;
    assert_eq!(code, Some(0), "{output}");
    let found = modes(&data);
    for name in [
        "nats-password",
        "webhook-secret",
        "coordinator.json",
        "journal.db",
        "journal.db-wal",
        "journal.db-shm",
        "journal.lock",
        "nats-server.conf",
        "nats-server.log",
        "nats-server.pid",
        "nats/jetstream",
    ] {
        let path = data.join(name);
        assert!(found.iter().any(|(found, _)| found.starts_with(&path)), "{name} is missing");
    }
    for (path, mode) in found {
        let expected = if path.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(mode, expected, "{} is {mode:o}", path.display());
    }
    stop(process).await;
}

#[tokio::test]
async fn what_others_can_read_is_put_right_and_told_in_one_line() {
    let environment = [
        ("GITEA_URL", "http://localhost:3000"),
        ("GITEA_WEBHOOK_SECRET", "0123456789abcdef"),
        ("NATS_URL", "nats://127.0.0.1:1"),
    ];
    for role in ["up", "ingest"] {
        let dir = temp_dir();
        let data = dir.path().join("data");
        let at = data.to_str().expect("UTF-8");
        let flags = ["--data-dir", at, "--port", "0", "--operator-port", "0"];
        let start = || Process::start(Path::new(EXE), role, &flags, &environment);
        let process = start();
        process.line_with("ingest listens").await;
        // Killed: the write-ahead log stays.
        drop(process);
        let files = ["journal.db", "journal.db-wal", "journal.db-shm", "journal.lock"];
        for name in files {
            set_permissions(data.join(name), Permissions::from_mode(0o644)).expect("chmod");
        }
        set_permissions(&data, Permissions::from_mode(0o755)).expect("chmod");

        let process = start();
        process.line_with("ingest listens").await;
        assert_eq!(mode(&data), 0o700);
        for name in files {
            assert_eq!(mode(&data.join(name)), 0o600, "{name}");
        }
        let output = process.output();
        let told: Vec<_> =
            output.lines().filter(|line| line.contains("others could use")).collect();
        assert_eq!(told.len(), 1, "{output}");
        assert!(told[0].contains("journal.db-wal (0644)"), "{told:?}");
    }
}

/// Makes a program that leaves a mark where it is run.
fn plant(file: &Path, first_line: &str, mark: &Path) {
    std::fs::create_dir_all(file.parent().expect("a parent")).expect("a directory");
    let text = match first_line {
        "" => format!("open({mark:?}, 'a').write('run')\n"),
        shell => format!("{shell}\necho \"$0\" >> '{}'\n", mark.display()),
    };
    std::fs::write(file, text).expect("write");
    set_permissions(file, Permissions::from_mode(0o755)).expect("chmod");
}

#[tokio::test]
async fn nothing_is_run_from_the_directory_where_it_is_started() {
    // No directory with a nats-server, so that one has to be fetched.
    let (_, path) = std::env::vars().find(|(name, _)| name == "PATH").expect("a PATH");
    let absolute: Vec<_> = path
        .split(':')
        .filter(|dir| dir.starts_with('/') && !Path::new(dir).join("nats-server").exists())
        .collect();
    let absolute = absolute.join(":");
    for (path, cache) in [
        // As the user has it.
        (absolute.clone(), "own"),
        (format!(":{absolute}"), "own"),
        (format!(".:{absolute}:"), "own"),
        (format!("bin:./bin:{absolute}"), "own"),
        // What was fetched before was replaced.
        (absolute.clone(), "tampered"),
        // A cache within the working directory.
        (absolute.clone(), "relative"),
    ] {
        let dir = temp_dir();
        let (here, mark) = (dir.path().join("here"), dir.path().join("mark"));
        for module in ["pip", "zipfile", "runpy", "encodings", "site", "sitecustomize"] {
            plant(&here.join(format!("{module}.py")), "", &mark);
        }
        for program in ["nats-server", "python3", "python", "pip3", "pip"] {
            for of in [here.clone(), here.join("bin")] {
                plant(&of.join(program), "#!/bin/sh", &mark);
            }
        }
        let kept = "coordinator/nats-server-2.15.1/nats-server";
        plant(&here.join("cache").join(kept), "#!/bin/sh", &mark);
        let own = dir.path().join("cache");
        if cache == "tampered" {
            plant(&own.join(kept), "#!/bin/sh", &mark);
        }
        let own = own.to_str().expect("UTF-8");
        let home = dir.path().join("home");
        let data = dir.path().join("data");
        let environment = [
            ("PATH", path.as_str()),
            ("HOME", home.to_str().expect("UTF-8")),
            ("XDG_CACHE_HOME", if cache == "relative" { "cache" } else { own }),
            // pip is run, and gets no further.
            ("PIP_NO_INDEX", "1"),
            ("PIP_FIND_LINKS", ""),
        ];
        let first = format!("cd '{}'", here.display());
        let mut process = start_after(&first, &up(&data), &environment);
        let code = process.exited().await.code();
        let output = process.output();
        assert!(!mark.exists(), "{path} {cache}: {} {output}", read(mark));
        assert_eq!(code, Some(1), "{output}");
        let last = output.lines().last().unwrap_or_default();
        assert!(last.contains("coordinator: pip could not fetch"), "{path} {cache}: {output}");
        assert_eq!(output.contains("is not the known one"), cache == "tampered", "{output}");
    }
    // The one that all other tests use was compared with its hash.
    assert!(nats::binary().await.is_absolute());
}
