//! Markdown to HTML, for the pages of the documentation.
//!
//! The same files are read in the repository. So anchors are named as code hosts name them, and links between pages
//! (`protocol.md#close-codes`) are rewritten to the paths that the broker serves.

use std::collections::HashMap;

use pulldown_cmark::{CowStr, Event, HeadingLevel, Options, Parser, Tag, TagEnd, html};

/// A page as HTML, and what an index needs of it.
#[derive(Debug)]
pub(super) struct Page {
    /// The text of its first heading.
    pub(super) title: String,
    /// The text of its first paragraph.
    pub(super) summary: String,
    /// All of it, in order. The first section is what stands under the title.
    pub(super) sections: Vec<Section>,
    /// The page without its frame.
    pub(super) html: String,
}

/// A heading and the text up to the next heading.
#[derive(Debug)]
pub(super) struct Section {
    /// 1 for the title, 2 for what is below it, and so on.
    pub(super) level: u8,
    pub(super) heading: String,
    /// The name of the heading in links.
    pub(super) anchor: String,
    pub(super) text: String,
    /// Further words by which the search finds it: `<!-- search: … -->`.
    pub(super) words: String,
}

/// Renders a page. HTML in the source is left out: the pages contain only comments, for the search and for the test that
/// runs their commands.
pub(super) fn render(source: &str) -> Page {
    let mut builder = PageBuilder::default();
    for event in Parser::new_ext(source, Options::ENABLE_TABLES) {
        builder.event(event);
    }
    let mut html = String::with_capacity(source.len() * 2);
    html::push_html(&mut html, builder.events.into_iter());
    let title = builder.sections.first().map(|section| section.heading.clone()).unwrap_or_default();
    Page { title, summary: builder.summary.unwrap_or_default(), sections: builder.sections, html }
}

#[derive(Default)]
struct PageBuilder<'a> {
    events: Vec<Event<'a>>,
    sections: Vec<Section>,
    summary: Option<String>,
    /// How often each anchor was used.
    anchors: HashMap<String, usize>,
    /// Where the heading that is being read begins in `events`.
    heading: Option<usize>,
    /// The text of the heading or paragraph that is being read.
    text: String,
}

impl<'a> PageBuilder<'a> {
    fn event(&mut self, event: Event<'a>) {
        match event {
            Event::Html(html) | Event::InlineHtml(html) => self.words(&html),
            Event::Start(Tag::Heading { .. }) => {
                self.heading = Some(self.events.len());
                self.text.clear();
                self.events.push(event);
            }
            Event::End(TagEnd::Heading(level)) => self.end_heading(level),
            Event::Start(Tag::Table(_)) => {
                // A wide table scrolls by itself, with the keyboard too.
                self.events.push(Event::Html("<div class=\"table\" tabindex=\"0\">".into()));
                self.events.push(event);
            }
            Event::End(TagEnd::Table) => {
                self.events.push(event);
                self.events.push(Event::Html("</div>".into()));
            }
            Event::Start(Tag::Link { link_type, dest_url, title, id }) => {
                let dest_url = served(dest_url);
                self.events.push(Event::Start(Tag::Link { link_type, dest_url, title, id }));
            }
            event => {
                self.read(&event);
                self.events.push(event);
            }
        }
    }

    /// Collects the text of what is read.
    fn read(&mut self, event: &Event<'a>) {
        match event {
            Event::Start(Tag::Paragraph) if self.summary.is_none() => self.text.clear(),
            Event::End(TagEnd::Paragraph) if self.summary.is_none() && !self.sections.is_empty() => {
                self.summary = Some(self.text.clone());
            }
            Event::Text(text) | Event::Code(text) => self.text(text),
            Event::SoftBreak
            | Event::HardBreak
            | Event::End(TagEnd::Paragraph | TagEnd::Item | TagEnd::TableCell | TagEnd::CodeBlock) => {
                self.text(" ");
            }
            _ => {}
        }
    }

    /// Takes further words of the section from a comment.
    fn words(&mut self, html: &str) {
        let words = html.trim().strip_prefix("<!-- search: ").and_then(|rest| rest.strip_suffix(" -->"));
        if let (Some(words), Some(section)) = (words, self.sections.last_mut()) {
            section.words.push_str(words);
        }
    }

    fn text(&mut self, text: &str) {
        self.text.push_str(text);
        if self.heading.is_none()
            && let Some(section) = self.sections.last_mut()
        {
            section.text.push_str(text);
        }
    }

    fn end_heading(&mut self, level: HeadingLevel) {
        let Some(start) = self.heading.take() else { return };
        let anchor = self.anchor();
        if let Some(Event::Start(Tag::Heading { id, .. })) = self.events.get_mut(start) {
            *id = Some(anchor.clone().into());
        }
        let link =
            format!(" <a class=\"anchor\" href=\"#{anchor}\" aria-label=\"Link to this section\">#</a>");
        self.events.push(Event::InlineHtml(link.into()));
        self.events.push(Event::End(TagEnd::Heading(level)));
        let heading = std::mem::take(&mut self.text);
        self.sections.push(Section {
            level: level as u8,
            heading,
            anchor,
            text: String::new(),
            words: String::new(),
        });
    }

    /// The anchor of a heading: lower case, without punctuation, with hyphens for spaces, numbered when it repeats.
    fn anchor(&mut self) -> String {
        let kept = |char: &char| char.is_alphanumeric() || matches!(char, ' ' | '-' | '_');
        let name: String = self.text.to_lowercase().chars().filter(kept).collect();
        let name = name.replace(' ', "-");
        let count = self.anchors.entry(name.clone()).or_default();
        *count += 1;
        match *count {
            1 => name,
            n => format!("{name}-{}", n - 1),
        }
    }
}

/// The path at which the broker serves what a link names: `protocol.md#errors` is `protocol#errors`.
fn served(link: CowStr<'_>) -> CowStr<'_> {
    let (page, fragment) = link.split_at(link.find('#').unwrap_or(link.len()));
    match page.strip_suffix(".md") {
        Some("index") => format!("./{fragment}").into(),
        Some(name) if !name.contains(['/', ':']) => format!("{name}{fragment}").into(),
        _ => link,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headings_have_the_anchors_that_code_hosts_give_them() {
        let page = render("# Close codes\n\n## `POST /v1/messages`\n\n## Errors\n\n## Errors\n");
        let anchors: Vec<&str> = page.sections.iter().map(|section| section.anchor.as_str()).collect();
        assert_eq!(anchors, ["close-codes", "post-v1messages", "errors", "errors-1"]);
        assert!(page.html.contains("<h2 id=\"errors-1\">Errors"), "{}", page.html);
    }

    #[test]
    fn links_between_pages_lead_to_what_the_broker_serves() {
        for (link, served_as) in [
            ("protocol.md", "protocol"),
            ("protocol.md#close-codes", "protocol#close-codes"),
            ("index.md", "./"),
            ("#errors", "#errors"),
            ("https://example.org/a.md", "https://example.org/a.md"),
            ("../../README.md", "../../README.md"),
        ] {
            assert_eq!(&*served(link.into()), served_as);
        }
    }

    #[test]
    fn a_page_knows_its_title_its_summary_and_its_sections() {
        let page = render(
            "# Limits\n\nWhat is `refused`,\nand when.\n\n<!-- not run: a reason -->\n\n## Sizes\n\n| a | b |\n|---|---|\n| c | `d` |\n",
        );
        assert_eq!((page.title.as_str(), page.summary.as_str()), ("Limits", "What is refused, and when."));
        assert_eq!(page.sections[1].text, "a b c d ");
        assert!(!page.html.contains("not run"), "{}", page.html);
        assert!(page.html.contains("<div class=\"table\" tabindex=\"0\"><table>"), "{}", page.html);
    }
}
