//! Which pages are served.

/// Whether the pages are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Pages {
    /// They are
    On,
    /// They are not. Everything else is
    Off,
}
