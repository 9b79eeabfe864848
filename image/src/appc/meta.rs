//! `<meta name content>` elements of an HTML page, read as tolerantly as browsers do (HTML, section 13.2.5), since such pages
//! are made by hand. For [discovery](super::discovery).

/// Most elements that are looked at.
const MAX_METAS: usize = 1000;
/// Elements whose content is text whatever it looks like.
const RAW_TEXT: [&str; 7] = ["script", "style", "textarea", "title", "xmp", "iframe", "noframes"];

/// A `meta` element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    pub name: String,
    pub content: String,
}

/// All `meta` elements that have a name and a content.
pub fn metas(page: &str) -> Vec<Meta> {
    let mut found = Vec::new();
    let mut rest = page;
    while let Some(at) = rest.find('<') {
        rest = &rest[at + 1..];
        if let Some(comment) = rest.strip_prefix("!--") {
            // `<!-->` is a whole comment.
            rest = comment.strip_prefix('>').unwrap_or_else(|| after(comment, "-->"));
            continue;
        }
        if rest.starts_with(['!', '?', '/']) {
            rest = after(rest, ">");
            continue;
        }
        if !rest.starts_with(|c: char| c.is_ascii_alphabetic()) {
            continue;
        }
        let end = rest.find(|c: char| c.is_ascii_whitespace() || matches!(c, '/' | '>')).unwrap_or(rest.len());
        let (tag, behind) = rest.split_at(end);
        let (attributes, behind) = attributes(behind);
        rest = behind;
        if tag.eq_ignore_ascii_case("meta") {
            let value = |name: &str| attributes.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
            if let (Some(name), Some(content)) = (value("name"), value("content")) {
                found.push(Meta { name, content });
                if found.len() == MAX_METAS {
                    break;
                }
            }
        } else if let Some(raw) = RAW_TEXT.iter().find(|raw| tag.eq_ignore_ascii_case(raw)) {
            rest = after_raw_text(rest, raw);
        }
    }
    found
}

/// What follows the first `mark`, or nothing.
fn after<'a>(text: &'a str, mark: &str) -> &'a str {
    text.find(mark).map_or("", |at| &text[at + mark.len()..])
}

/// What follows the content of an element that ends with its own closing tag only.
fn after_raw_text<'a>(mut rest: &'a str, tag: &str) -> &'a str {
    loop {
        rest = after(rest, "</");
        if rest.is_empty() || rest.get(..tag.len()).is_some_and(|start| start.eq_ignore_ascii_case(tag)) {
            return rest;
        }
    }
}

/// A tag's attributes, names in lower case, and what follows the tag.
fn attributes(mut rest: &str) -> (Vec<(String, String)>, &str) {
    let mut found: Vec<(String, String)> = Vec::new();
    let space = |c: char| c.is_ascii_whitespace();
    loop {
        rest = rest.trim_start_matches(|c: char| space(c) || c == '/');
        if let Some(behind) = rest.strip_prefix('>') {
            return (found, behind);
        }
        if rest.is_empty() {
            // A tag without end is none.
            return (Vec::new(), "");
        }
        // A name may begin with `=`, so that every round takes something.
        let from = rest.chars().next().map_or(0, char::len_utf8);
        let end =
            rest[from..].find(|c: char| space(c) || matches!(c, '/' | '>' | '=')).map_or(rest.len(), |at| from + at);
        let (name, behind) = rest.split_at(end);
        rest = behind;
        let mut value = "";
        if let Some(given) = rest.trim_start_matches(space).strip_prefix('=') {
            let given = given.trim_start_matches(space);
            (value, rest) = match given.chars().next() {
                Some(quote @ ('"' | '\'')) => match given[1..].find(quote) {
                    Some(at) => (&given[1..1 + at], &given[at + 2..]),
                    None => return (Vec::new(), ""),
                },
                _ => given.split_at(given.find(|c: char| space(c) || c == '>').unwrap_or(given.len())),
            };
        }
        let name = name.to_ascii_lowercase();
        if !found.iter().any(|(known, _)| *known == name) {
            found.push((name, unescaped(value)));
        }
    }
}

/// A value with its character references replaced; those that are not known stay.
fn unescaped(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        plain.push_str(&rest[..at]);
        rest = &rest[at..];
        let reference = rest[1..].split_once(';').and_then(|(name, behind)| Some((character(name)?, behind)));
        match reference {
            Some((character, behind)) => {
                plain.push(character);
                rest = behind;
            }
            None => {
                plain.push('&');
                rest = &rest[1..];
            }
        }
    }
    plain + rest
}

fn character(name: &str) -> Option<char> {
    match name {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        _ => {
            let number = name.strip_prefix('#')?;
            let code = match number.strip_prefix(['x', 'X']) {
                Some(hex) => u32::from_str_radix(hex, 16),
                None => number.parse(),
            };
            char::from_u32(code.ok()?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(page: &str) -> Vec<(String, String)> {
        metas(page).into_iter().map(|meta| (meta.name, meta.content)).collect()
    }

    #[test]
    fn pages_are_read_as_they_are_written_by_hand() {
        let one = [("ac-discovery".to_owned(), "a.example https://a.example/{name}.{ext}".to_owned())];
        for page in [
            r#"<!DOCTYPE html><html><head><meta name="ac-discovery" content="a.example https://a.example/{name}.{ext}"></head>"#,
            "<META CONTENT='a.example https://a.example/{name}.{ext}' NAME=ac-discovery />",
            "<meta\n name = 'ac-discovery'\n content\t=\n\"a.example https://a.example/{name}.{ext}\"/>",
            r#"<meta charset=utf-8><p>a < b & c<meta name="ac-discovery" content="a.example https&#58;//a.example/{name}.{ext}" content="x">"#,
            r#"<script>"<meta name=x content=y>"</script><!-- <meta name=x content=y> --><meta name="ac-discovery" content="a.example https&#x3a;//a.example/{name}.{ext}">"#,
            r#"<title></titlx<meta name=x content=y></TITLE><meta x=">" name="ac-discovery" content="a.example https://a.example/{name}.{ext}">"#,
        ] {
            assert_eq!(read(page), one, "{page}");
        }
    }

    #[test]
    fn what_is_no_whole_element_is_passed_over() {
        for page in [
            "",
            "<",
            "<meta",
            "<meta name=x content=",
            "<meta name=x content='y>",
            "<metal name=x content=y>",
            "<!-- <meta name=x content=y>",
            "<meta name=x>",
        ] {
            assert_eq!(read(page), [], "{page}");
        }
    }

    proptest! {
        #[test]
        fn any_page_is_read_without_panic(
            text in ".{0,200}",
            near in "(<|>|meta|script|/|!--|-->|name|content|=|\"|'| |&|amp;|#|x|;|é){0,60}",
        ) {
            let _ = metas(&text);
            let _ = metas(&near);
        }

        #[test]
        fn quoted_values_come_back(name in "[a-z-]{1,10}", content in "[^\"&<>\u{0}]{0,40}") {
            let page = format!("<meta name=\"{name}\" content=\"{content}\">");
            prop_assert_eq!(read(&page), vec![(name, content)]);
        }
    }
}
