//! Who asks: tokens, and the groups of a user that a proxy names.

use std::borrow::Cow;

use super::files::catalogue::digest;
use super::http::request::Request;
use super::http::response::Response;

/// What one request may see.
#[derive(Clone, Debug)]
pub struct Scope<'a> {
    /// Source that is asked.
    pub source: &'a str,
    /// Where DICOMweb's resources begin.
    pub root: Cow<'static, str>,
    /// Groups of the user, where a proxy names them: what the index shows to none of them is not there.
    pub groups: Option<Vec<String>>,
}

impl Scope<'_> {
    /// A number for an instance as these groups see it: they may see one copy of it, and others another.
    pub fn name(&self, instance: &str) -> u128 {
        match &self.groups {
            None => digest(self.source, instance),
            Some(groups) => digest(&[self.source, "\0", &groups.join("\0")].concat(), instance),
        }
    }
}

/// A token as it is kept and compared.
pub fn token_digest(token: &str) -> [u8; 32] {
    use blake2::digest::consts::U32;
    use blake2::{Blake2b, Digest};
    Blake2b::<U32>::digest(token.as_bytes()).into()
}

/// Checks the token of a request; without tokens everybody may ask. Returns the sources that it is good for; none for
/// all.
///
/// # Errors
/// The response that refuses the request.
pub fn check_token<'t>(
    tokens: &'t [([u8; 32], Vec<String>)],
    request: &Request<'_>,
) -> Result<&'t [String], Response> {
    if tokens.is_empty() {
        return Ok(&[]);
    }
    let given = request.header("authorization").and_then(|line| {
        let (scheme, token) = line.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token_digest(token.trim()))
    });
    // Digests are compared, so that the time of the comparison says nothing of the token.
    let known = given.and_then(|given| tokens.iter().find(|(token, _)| *token == given));
    let Some((_, sources)) = known else {
        let detail = "send the header: Authorization: Bearer TOKEN";
        let challenge = "Bearer realm=\"voxtier\"";
        return Err(Response::refusal(401, "unauthorized", detail).with("WWW-Authenticate", challenge));
    };
    Ok(sources)
}

/// Whether a token that is good for these sources opens one.
pub fn opens(good_for: &[String], source: &str) -> bool {
    good_for.is_empty() || good_for.iter().any(|each| each == source)
}

/// The groups that a proxy names in the header line `name`: by comma, in one line or several. `None` where the
/// gateway is not told of groups. Blanks around a name are those of HTTP (RFC 9110 5.6.3): others are of the name.
///
/// # Errors
/// The response to a request without this line, which did not come through the proxy, or with one that is not text.
pub fn groups(name: Option<&str>, request: &Request<'_>) -> Result<Option<Vec<String>>, Response> {
    let Some(name) = name else { return Ok(None) };
    let refusal = |detail| Err(Response::refusal(401, "unauthorized", detail));
    let mut lines = request.raw_lines(name).map(std::str::from_utf8).peekable();
    if lines.peek().is_none() {
        return refusal("the proxy in front of the gateway names no groups");
    }
    let Ok(lines) = lines.collect::<Result<Vec<_>, _>>() else {
        return refusal(
            "the proxy in front of the gateway names a group that is not in UTF-8: send its name in UTF-8",
        );
    };
    let names = lines.iter().flat_map(|line| line.split(',')).map(|name| name.trim_matches([' ', '\t']));
    Ok(Some(names.filter(|name| !name.is_empty()).map(str::to_owned).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use httparse::Header;

    #[test]
    fn groups_come_from_all_lines_of_one_name() {
        let headers = [("x-groups", "a, b c"), ("X-Groups", ",d,"), ("x-group", "e")];
        let headers = headers.map(|(name, value)| Header { name, value: value.as_bytes() });
        let of = |name| groups(name, &Request::new("GET", "/", &headers));
        let named = |names: &[&str]| Some(names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>());
        assert_eq!(of(Some("X-Groups")).ok(), Some(named(&["a", "b c", "d"])));
        assert_eq!(of(None).ok(), Some(None));
        assert_eq!(of(Some("X-Other")).err().map(|refusal| refusal.status), Some(401));
        let blanks = [("x-groups", "\ta , \u{a0}b,c\u{3000}")];
        let blanks = blanks.map(|(name, value)| Header { name, value: value.as_bytes() });
        let given = groups(Some("X-Groups"), &Request::new("GET", "/", &blanks));
        assert_eq!(given.ok(), Some(named(&["a", "\u{a0}b", "c\u{3000}"])));
        let empty = [Header { name: "x-groups", value: b"" }];
        assert_eq!(groups(Some("X-Groups"), &Request::new("GET", "/", &empty)).ok(), Some(named(&[])));
    }
}
