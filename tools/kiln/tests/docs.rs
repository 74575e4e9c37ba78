//! The documentation holds: links lead somewhere, quoted commands parse, pages are those of the
//! program.
//!
//! `KILN_WRITE_GOLDEN=1 cargo test --release -p kiln --test docs` writes the command line's page
//! anew.

mod harness;

use harness::{kiln, kiln_ok, root};
use kiln_compiler::device::DeviceProfile;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// The project's Markdown files.
fn pages() -> Vec<PathBuf> {
    let mut folders = vec![root()];
    let mut pages = vec![];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("the repository can be read") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                folders.push(path);
            } else if name.ends_with(".md") {
                pages.push(path);
            }
        }
    }
    assert!(pages.len() > 30, "{pages:?}");
    pages
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The text outside of fenced and of inline code, and the code.
fn split_code(page: &str) -> (String, Vec<String>) {
    let (mut prose, mut code) = (String::new(), vec![]);
    for (index, part) in page.split("```").enumerate() {
        if index % 2 == 1 {
            code.push(part.split_once('\n').map_or("", |(_, block)| block).to_string());
            continue;
        }
        for (index, part) in part.split('`').enumerate() {
            if index % 2 == 1 { code.push(part.replace('\n', " ")) } else { prose.push_str(part) }
        }
    }
    (prose, code)
}

/// Anchors of a page's headings, as GitHub makes them.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = page.lines().filter(|line| line.starts_with('#'));
    let kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
    let anchor = |line: &str| -> String {
        let text: String = line.trim_start_matches('#').trim().chars().filter(kept).collect();
        text.to_lowercase().replace(' ', "-")
    };
    headings.map(anchor).collect()
}

#[test]
fn every_link_leads_somewhere() {
    for path in pages() {
        let (prose, _) = split_code(&read(&path));
        for link in prose.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => path.clone(),
                file => path.parent().expect("a folder").join(file),
            };
            assert!(target.exists(), "{}: no {link}", path.display());
            let found = anchor.is_empty() || anchors(&read(&target)).contains(anchor);
            assert!(found, "{}: no heading for {link}", path.display());
        }
    }
}

/// `a/{b,c}.rs` as `a/b.rs` and `a/c.rs`.
fn expand(path: &str) -> Vec<String> {
    let parts = path.split_once('{').and_then(|(head, rest)| Some((head, rest.split_once('}')?)));
    let Some((head, (names, tail))) = parts else { return vec![path.to_string()] };
    names.split(',').map(|name| format!("{head}{name}{tail}")).collect()
}

#[test]
fn every_quoted_file_exists() {
    let folders = ["compiler", "docs", "graphs", "kernels-templates", "models", "runtime", "tools"];
    let is_file = |code: &&String| {
        let (folder, rest) = code.split_once('/').unwrap_or_default();
        folders.contains(&folder) && !rest.contains([' ', '*', '$'])
    };
    let mut count = 0;
    for page in pages().iter().filter(|page| !page.ends_with("CHANGELOG.md")) {
        let (_, code) = split_code(&read(page));
        for path in code.iter().filter(is_file).flat_map(|path| expand(path)) {
            assert!(root().join(&path).exists(), "{}: no {path}", page.display());
            count += 1;
        }
    }
    assert!(count > 50, "{count} files");
}

#[test]
fn pages_and_lines_are_short() {
    for (page, most) in [("README.md", 90), ("ARCHITECTURE.md", 150)] {
        let lines = read(&root().join(page)).lines().count();
        assert!(lines <= most, "{page} has {lines} lines, of at most {most}");
    }
    for path in pages() {
        let page = read(&path);
        let is_prose = |line: &&str| !line.starts_with(['|', '!']);
        let long = page.lines().filter(is_prose).find(|line| line.chars().count() > 120);
        assert!(long.is_none(), "{}: over 120 columns: {long:?}", path.display());
    }
}

/// The calls of `kiln` in a piece of code, as arguments. `kiln-run` takes those of `kiln run`.
fn calls(code: &str) -> Vec<Vec<String>> {
    let code = code.replace("\\\n", " ");
    let words = |line: &str| shlex::split(line).unwrap_or_else(|| panic!("quotes: {line}"));
    let is_end = |word: &String| ["|", ">", "&&", ";"].contains(&word.as_str());
    let call = |words: &[String]| match words.split_first() {
        Some((first, rest)) if first == "kiln" && !rest.is_empty() => Some(rest.to_vec()),
        Some((first, rest)) if first == "kiln-run" && rest.len() > 1 && rest[0] != "--prepare" => {
            Some([&["run".to_string()], rest].concat())
        }
        _ => None,
    };
    let is_usage = |line: &str| line.contains("[OPTIONS]");
    let is_call = |line: &str| ["kiln ", "kiln-run "].iter().any(|name| line.starts_with(name));
    let is_line = |line: &&str| is_call(line) && !is_usage(line);
    let lines: Vec<_> = code.lines().map(str::trim).filter(is_line).map(words).collect();
    lines.iter().flat_map(|line| line.split(is_end)).filter_map(call).collect()
}

#[test]
fn every_quoted_command_parses() {
    let mut count = 0;
    for path in pages().iter().filter(|path| !path.ends_with("CHANGELOG.md")) {
        let (_, code) = split_code(&read(path));
        for call in code.iter().flat_map(|code| calls(code)) {
            // Arguments are parsed up to the call for help, which stands in for all that is left
            // out.
            let args: Vec<&str> = call.iter().map(String::as_str).chain(["--help"]).collect();
            let output = kiln(&args);
            let error = String::from_utf8_lossy(&output.stderr);
            // A text may name an option without a value.
            let parses = output.status.success() || error.contains("a value is required");
            assert!(parses, "{}: kiln {call:?}: {error}", path.display());
            count += 1;
        }
    }
    assert!(count > 50, "{count} commands");
}

/// The page of the command line: the help of every command.
fn command_line() -> String {
    let mut page = "# Command line\n\nWhat `--help` prints, written by \
                    `KILN_WRITE_GOLDEN=1 cargo test --release -p kiln --test docs`.\n"
        .to_string();
    let mut commands = vec![vec![]];
    while let Some(command) = commands.pop() {
        let help = kiln_ok(&[&command[..], &["--help"]].concat());
        let title = [&["kiln"], &command[..]].concat().join(" ");
        write!(page, "\n## `{title}`\n\n```text\n{}\n```\n", help.trim_end()).expect("written");
        let list = help.split("\nCommands:\n").nth(1).unwrap_or_default();
        let list = list.split("\n\n").next().unwrap_or_default();
        let is_entry = |line: &&str| line.starts_with("  ") && !line.starts_with("   ");
        let names = list.lines().filter(is_entry).filter_map(|l| l.split_whitespace().next());
        let names: Vec<String> = names.filter(|name| *name != "help").map(String::from).collect();
        for name in names.into_iter().rev() {
            commands.push([&command[..], &[&*name.leak()]].concat());
        }
    }
    page
}

#[test]
fn the_page_of_the_command_line_is_what_help_prints() {
    let path = root().join("docs/reference/cli.md");
    let found = command_line();
    if std::env::var_os("KILN_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, &found).expect("the repository can be written");
    }
    let expected = read(&path);
    for (found, expected) in found.lines().zip(expected.lines()) {
        assert_eq!(found, expected, "KILN_WRITE_GOLDEN=1 writes {}", path.display());
    }
    assert_eq!(found.lines().count(), expected.lines().count(), "{}", path.display());
}

#[test]
fn every_pass_is_documented() {
    let page = read(&root().join("docs/how-it-works/planner.md"));
    for pass in kiln_compiler::passes::PASSES {
        assert!(page.contains(&format!("`{}`", pass.name)), "{} is not documented", pass.name);
    }
}

#[test]
fn every_profile_is_named_where_they_are_listed() {
    for page in ["docs/guide/compile.md", "docs/reference/profile.md", "docs/benchmarks/memory.md"]
    {
        let text = read(&root().join(page));
        for name in DeviceProfile::names() {
            assert!(text.contains(&format!("`{name}`")), "{page} does not name {name}");
        }
    }
}

#[test]
fn every_field_of_a_profile_is_documented() {
    let page = read(&root().join("docs/reference/profile.md"));
    let (_, text) = DeviceProfile::text("mali-g78").expect("it ships");
    let file = harness::scratch("docs").join("unknown.toml");
    let tables = ["[target]", "[memory]", "[rates]", "[[published]]", "[[target.tuning]]"];
    for table in tables {
        // A field that no profile has is refused, and the error names those that there are.
        let unknown = format!("{table}\nunknown = 0");
        let with_unknown = match text.contains(table) {
            true => text.replacen(table, &unknown, 1),
            false => format!("{text}\n{unknown}\n"),
        };
        std::fs::write(&file, with_unknown).expect("the target folder can be written");
        let error = format!("{:#}", DeviceProfile::load(harness::arg(&file)).expect_err("unknown"));
        let (_, fields) = error.split_once("expected one of ").unwrap_or_else(|| panic!("{error}"));
        let (_, section) = page.split_once(&format!("## `{table}`")).expect("a section");
        let section = section.split("\n## ").next().unwrap_or_default();
        let fields: Vec<&str> = fields.split('`').skip(1).step_by(2).collect();
        assert!(fields.len() >= 3, "{error}");
        for field in fields {
            assert!(section.contains(&format!("`{field}`")), "{table} {field} is not documented");
        }
    }
}
