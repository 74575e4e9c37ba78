//! Previews while an image is made: a file beside it, and a display on terminals that show images.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use kiln_bundle::plan::{Manifest, Size};

use super::{bar::Bar, files, interrupt};
use crate::error::RuntimeError;
use crate::pipeline::png;
use crate::pipeline::preview::Projection;

/// Height of a preview in lines of the terminal.
const ROWS: usize = 12;
/// Most characters of an image in one escape sequence of kitty's protocol.
const KITTY_CHUNK: usize = 4096;

/// Writes and shows previews.
pub(super) struct Previews<'a> {
    every: usize,
    path: PathBuf,
    projection: &'static Projection,
    /// Sizes of the latent and of the image.
    sizes: (Size, Size),
    terminal: Option<Terminal>,
    bar: &'a Bar,
    /// Whether the terminal has free lines for the preview.
    shown: bool,
}

impl<'a> Previews<'a> {
    /// Previews of a model's latents every `every` steps; none if it is 0.
    pub(super) fn new(
        every: usize,
        output: &Path,
        manifest: &Manifest,
        bar: &'a Bar,
    ) -> Previews<'a> {
        Previews {
            every,
            path: files::preview_of(output),
            projection: Projection::of_model(&manifest.model),
            sizes: (manifest.latent, manifest.image),
            terminal: io::stderr().is_terminal().then(Terminal::here).flatten(),
            bar,
            shown: false,
        }
    }

    /// Handles the end of a step. `picture` is the latent of the image so far, `decoded` the image
    /// or empty.
    pub(super) fn step(
        &mut self,
        done: usize,
        picture: &[f32],
        decoded: &[f32],
    ) -> Result<(), RuntimeError> {
        if self.every == 0 || !done.is_multiple_of(self.every) {
            return Ok(());
        }
        let image = self.projection.preview(picture, decoded, self.sizes)?;
        {
            let _whole = interrupt::write();
            png::save_png(&self.path, &image, None)?;
        }
        if let Some(terminal) = self.terminal {
            let mut file = Vec::new();
            png::write_png(&mut file, &image, None)?;
            let text = terminal.place(&file, self.shown);
            self.shown = true;
            // A closed terminal is no failure.
            self.bar.suspend(|| {
                let _ = io::stderr().write_all(text.as_bytes());
            });
        }
        Ok(())
    }
}

/// Protocol by which a terminal shows images.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Terminal {
    /// kitty's graphics protocol.
    Kitty,
    /// iTerm2's inline images.
    Iterm,
}

impl Terminal {
    fn here() -> Option<Terminal> {
        Terminal::by(|name| std::env::var(name).ok())
    }

    /// Chooses by the environment. Terminal multiplexers do not pass images on.
    fn by(variable: impl Fn(&str) -> Option<String>) -> Option<Terminal> {
        let value = |name: &str| variable(name).unwrap_or_default();
        if variable("TMUX").is_some() || variable("STY").is_some() {
            return None;
        }
        match (&*value("TERM_PROGRAM"), &*value("LC_TERMINAL")) {
            ("iTerm.app" | "WezTerm" | "mintty", _) | (_, "iTerm2") => Some(Terminal::Iterm),
            ("ghostty", _) => Some(Terminal::Kitty),
            _ if value("TERM") == "xterm-kitty" => Some(Terminal::Kitty),
            _ => variable("KITTY_WINDOW_ID").map(|_| Terminal::Kitty),
        }
    }

    /// The escape sequence that shows a PNG file in the lines above the cursor and keeps the
    /// cursor's place. It adds these lines if there are none yet.
    fn place(self, file: &[u8], again: bool) -> String {
        let room = if again { String::new() } else { "\n".repeat(ROWS) };
        format!("{room}\x1b[{ROWS}A\x1b7{}\x1b8\x1b[{ROWS}B", self.escape(&base64(file)))
    }

    fn escape(self, encoded: &str) -> String {
        match self {
            Terminal::Iterm => {
                format!("\x1b]1337;File=inline=1;height={ROWS};preserveAspectRatio=1:{encoded}\x07")
            }
            Terminal::Kitty => {
                let mut text = String::new();
                let mut rest = encoded;
                // A fixed id, so that each preview replaces the previous one.
                let mut keys = format!("a=T,f=100,i=1,p=1,C=1,q=2,r={ROWS},");
                while !rest.is_empty() || !keys.is_empty() {
                    let (chunk, left) = rest.split_at(rest.len().min(KITTY_CHUNK));
                    let more = usize::from(!left.is_empty());
                    text += &format!("\x1b_G{keys}m={more};{chunk}\x1b\\");
                    rest = left;
                    keys.clear();
                }
                text
            }
        }
    }
}

/// Source: RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |index| u32::from(group.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let digit = ALPHABET[(bits >> (18 - 6 * place) & 63) as usize];
            text.push(if place > group.len() { '=' } else { char::from(digit) });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_are_told_apart_by_their_environment() {
        let by = |pairs: &[(&str, &str)]| {
            Terminal::by(|name| {
                let found = pairs.iter().find(|(key, _)| *key == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        assert_eq!(by(&[("TERM", "xterm-256color")]), None);
        assert_eq!(by(&[("TERM", "xterm-kitty")]), Some(Terminal::Kitty));
        assert_eq!(by(&[("KITTY_WINDOW_ID", "1")]), Some(Terminal::Kitty));
        assert_eq!(by(&[("TERM_PROGRAM", "iTerm.app")]), Some(Terminal::Iterm));
        assert_eq!(by(&[("LC_TERMINAL", "iTerm2")]), Some(Terminal::Iterm));
        assert_eq!(by(&[("TERM", "xterm-kitty"), ("TMUX", "/tmp/x")]), None);
    }

    #[test]
    fn base64_equals_the_rfc() {
        for (text, expected) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(text.as_bytes()), expected);
        }
    }

    #[test]
    fn escapes_leave_the_cursor_where_it_was() {
        let iterm = Terminal::Iterm.place(b"foobar", true);
        assert!(iterm.starts_with("\x1b[12A\x1b7\x1b]1337;File=inline=1;"), "{iterm:?}");
        assert!(iterm.ends_with(":Zm9vYmFy\x07\x1b8\x1b[12B"), "{iterm:?}");
        let kitty = Terminal::Kitty.place(&[0; 4000], false);
        assert!(kitty.starts_with(&"\n".repeat(12)));
        assert_eq!(kitty.matches("\x1b_G").count(), 2);
        assert!(kitty.contains("r=12,m=1;AAAA") && kitty.contains("\x1b_Gm=0;AAAA"));
    }
}
