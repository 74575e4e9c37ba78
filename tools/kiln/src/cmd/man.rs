//! `kiln man`: manual pages, made from the same text as `--help`.

use anyhow::{Context, Result};
use clap::Command;
use clap_mangen::Man;
use std::path::{Path, PathBuf};

/// Write manual pages: kiln.1 and one for each command.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  kiln man ~/.local/share/man/man1
  kiln man pages && man -l pages/kiln-compile.1")]
pub struct Args {
    /// Folder for the pages. It is created if it does not exist
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
}

/// Writes the pages. `command` is the whole program.
pub fn run(args: Args, command: Command) -> Result<()> {
    let path = args.folder.display();
    std::fs::create_dir_all(&args.folder).with_context(|| format!("creating {path}"))?;
    let mut command = command.disable_help_subcommand(true);
    command.build();
    for subcommand in command.get_subcommands() {
        write_page(subcommand.clone(), &args.folder)?;
    }
    write_page(command, &args.folder)
}

/// Writes one page, with the examples under a heading of their own.
fn write_page(command: Command, folder: &Path) -> Result<()> {
    let source = concat!("kiln ", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command).source(source).manual("Kiln Manual");
    let path = folder.join(man.get_filename());
    let mut page = Vec::new();
    man.render(&mut page).context("rendering a manual page")?;
    let page = String::from_utf8(page).context("help is UTF-8")?;
    let page = page
        .replace(".SH EXTRA\nExamples:\n", ".SH EXAMPLES\n.nf\n")
        .replace(".SH EXTRA\nExample:\n", ".SH EXAMPLES\n.nf\n");
    std::fs::write(&path, page).with_context(|| format!("writing {}", path.display()))
}
