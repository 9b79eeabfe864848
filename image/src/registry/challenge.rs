//! What a registry wants to be shown: the `WWW-Authenticate` header (RFC 9110, section 11.6.1), as far as the
//! distribution project's token protocol uses it.

/// How a registry wants to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// With a user and a password.
    Basic,
    /// With a token that `realm` gives.
    Bearer {
        /// A URL.
        realm: String,
        /// What the token is for, in the registry's words.
        service: Option<String>,
        /// What the token must allow, in the registry's words.
        scope: Option<String>,
    },
}

/// The best of the challenges that headers hold; a token is better than a password.
pub fn best<'a>(headers: impl IntoIterator<Item = &'a str>) -> Option<Challenge> {
    let mut found = None;
    for challenge in headers.into_iter().flat_map(parse) {
        match challenge {
            Challenge::Bearer { .. } => return Some(challenge),
            Challenge::Basic => found = Some(challenge),
        }
    }
    found
}

/// All challenges of one header that are known here.
fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    let mut scheme = String::new();
    let mut parameters: Vec<(String, String)> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, behind) = rest.split_at(end);
        let is_parameter = behind.trim_start_matches([' ', '\t']).starts_with('=');
        if word.is_empty() && !is_parameter {
            challenges.extend(challenge(&scheme, &parameters));
            return challenges;
        }
        if is_parameter {
            let value = behind.trim_start_matches([' ', '\t']).trim_start_matches('=').trim_start_matches([' ', '\t']);
            let (value, behind) = take_value(value);
            parameters.push((word.to_ascii_lowercase(), value));
            rest = behind;
        } else {
            challenges.extend(challenge(&scheme, &parameters));
            scheme = word.to_ascii_lowercase();
            parameters.clear();
            rest = behind;
        }
    }
}

/// A quoted text or a word, and what stands behind it.
fn take_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', '\t', ',']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

fn challenge(scheme: &str, parameters: &[(String, String)]) -> Option<Challenge> {
    let parameter = |name: &str| parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    match scheme {
        "basic" => Some(Challenge::Basic),
        "bearer" => {
            let realm = parameter("realm")?;
            Some(Challenge::Bearer { realm, service: parameter("service"), scope: parameter("scope") })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn tokens_are_preferred_and_scopes_keep_their_commas() {
        let bearer = |scope: Option<&str>| Challenge::Bearer {
            realm: "https://auth.example/token".into(),
            service: Some("registry.example".into()),
            scope: scope.map(str::to_owned),
        };
        let header =
            r#"Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull,push""#;
        assert_eq!(best([header]), Some(bearer(Some("repository:a/b:pull,push"))));
        let both = r#"Basic realm="x", Bearer realm="https://auth.example/token" , service=registry.example"#;
        assert_eq!(best([both]), Some(bearer(None)));
        assert_eq!(best([r#"Basic realm="a \" b""#]), Some(Challenge::Basic));
        assert_eq!(best(["basic"]), Some(Challenge::Basic));
        assert_eq!(best(["Negotiate", "Digest realm=x"]), None);
        assert_eq!(best(["Bearer service=x"]), None);
    }

    proptest! {
        #[test]
        fn any_text_is_answered_without_panic(text in ".{0,80}", near in "[Bearbsic realm=\",\\\\x ]{0,60}") {
            let _ = best([text.as_str(), near.as_str()]);
        }
    }
}
