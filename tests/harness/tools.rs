//! Tools of others that no Debian package brings: fetched once into `tests/.cache`, in the version named, by their registry's client.
//!
//! Each goes into a folder of its own first: an interrupted download must not pass for a complete one.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use crate::folder;

/// The program that a Go module builds. `module` is its path, the last part of which names the program.
pub fn go(module: &str, version: &str) -> PathBuf {
    let name = module.rsplit('/').next().expect("a path has a last part");
    let folder = fetch(&format!("{name}-{version}"), "Go (package golang-go)", |partial| {
        let mut command = Command::new("go");
        command.arg("install").arg(format!("{module}@{version}")).env("GOBIN", partial);
        command
    });
    folder.join(name)
}

/// A folder for `PYTHONPATH` that holds these packages, each with its version.
pub fn python(packages: &[&str]) -> PathBuf {
    let name = format!("python-{}", packages.join("-").replace("==", "-"));
    fetch(&name, "Python with pip (packages python3-pip, python3-dev)", |partial| {
        let mut command = Command::new("python3");
        command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--root-user-action=ignore"]);
        command.arg("--target").arg(partial).args(packages);
        command
    })
}

/// A folder for `NODE_PATH` that holds these packages, each with its version (`name@version`).
pub fn node(packages: &[&str]) -> PathBuf {
    let name = format!("node-{}", packages.join("-").replace('@', "-"));
    let folder = fetch(&name, "Node with npm (packages nodejs, npm)", |partial| {
        let mut command = Command::new("npm");
        command.args(["install", "--silent", "--no-audit", "--no-fund", "--no-save", "--prefix"]);
        command.arg(partial).args(packages);
        command
    });
    folder.join("node_modules")
}

fn fetch(name: &str, needs: &str, command: impl FnOnce(&Path) -> Command) -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = folder::cache().join(name);
    if folder.is_dir() {
        return folder;
    }
    println!("fetching {name}");
    let partial = folder::cache().join(format!("{name}.partial-{}", std::process::id()));
    let status = command(&partial).status();
    assert!(status.is_ok_and(|status| status.success()), "{name} could not be fetched; the tests need {needs}");
    // Another suite may have been faster; its folder is as good as ours.
    if std::fs::rename(&partial, &folder).is_err() {
        assert!(folder.is_dir(), "{} cannot be made", folder.display());
        let _ = std::fs::remove_dir_all(&partial);
    }
    folder
}
