//! The account as one page that needs no network and no other files.

use std::io::{Result, Write};

use super::schema::Account;

const PAGE: &str = include_str!("../../../assets/inspect.html");
const STYLE: &str = include_str!("../../../assets/inspect.css");
const SCRIPTS: [&str; 5] = [
    include_str!("../../../assets/inspect-model.js"),
    include_str!("../../../assets/inspect-map.js"),
    include_str!("../../../assets/inspect-table.js"),
    include_str!("../../../assets/inspect-main.js"),
    include_str!("../../../assets/inspect-selftest.js"),
];

/// Writes the page.
pub fn write(account: &Account, out: &mut dyn Write) -> Result<()> {
    // Only this sequence could end the script element early.
    let json = serde_json::to_string(account)?.replace("</", "<\\/");
    let title = format!("{} {} for {}", account.model, account.precision, account.profile);
    let parts = [
        ("/*STYLE*/", STYLE.to_string()),
        ("/*ACCOUNT*/", json),
        ("/*SCRIPT*/", SCRIPTS.concat()),
        ("TITLE", escape(&title)),
    ];
    let mut rest = PAGE;
    while let Some((at, mark, text)) = parts
        .iter()
        .filter_map(|(mark, text)| rest.find(mark).map(|at| (at, mark, text)))
        .min_by_key(|(at, _, _)| *at)
    {
        out.write_all(&rest.as_bytes()[..at])?;
        out.write_all(text.as_bytes())?;
        rest = &rest[at + mark.len()..];
    }
    out.write_all(rest.as_bytes())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
