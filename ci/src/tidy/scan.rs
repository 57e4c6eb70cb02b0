//! Reads one Rust file as far as the tidy rules need: code without strings and comments, comments by line, tokens,
//! and which lines are test code. Key type: [`Source`]. It is no parser: where it cannot know, it lets the author be.

/// One line of a file, taken apart.
#[derive(Debug, Default, Clone)]
pub struct Line {
    /// The line without comments; what stood inside string and character literals is blanked.
    pub code: String,
    /// What the line says in comments, markers (`//`, `//!`, `///`) included.
    pub comment: String,
    /// Inside an item under `#[cfg(test)]`, or in a file of tests.
    pub is_test: bool,
    /// Inside an item under `#[cfg(not(loom))]`, which the model checker never compiles.
    pub is_off_loom: bool,
}

impl Line {
    /// Nothing but comment on it (or nothing at all but a comment's middle).
    pub fn is_comment_only(&self) -> bool {
        self.code.trim().is_empty() && !self.comment.trim().is_empty()
    }

    fn is_attribute(&self) -> bool {
        self.code.trim_start().starts_with("#[") || self.code.trim_start().starts_with("#![")
    }
}

/// An identifier or one punctuation character (`::` is one token), with its line counted from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub line: usize,
    pub text: String,
}

/// A braced item (`fn`, `impl`, `mod`, `trait`): its lines and the documentation directly above it.
#[derive(Debug)]
pub struct Span {
    pub first_line: usize,
    pub last_line: usize,
    pub docs: String,
}

/// A file, read once and asked by every rule. `path` is relative to the workspace.
#[derive(Debug)]
pub struct Source {
    pub path: String,
    pub lines: Vec<Line>,
    pub tokens: Vec<Token>,
    pub spans: Vec<Span>,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Self {
        let mut lines = split(text);
        let tokens = tokens_of(&lines);
        let file_is_test = is_test_path(path);
        for line in &mut lines {
            line.is_test = file_is_test;
        }
        for item in conditional_items(&tokens) {
            for line in &mut lines[item.first_line..=item.last_line] {
                line.is_test |= item.is_test;
                line.is_off_loom |= item.is_off_loom;
            }
        }
        let spans = spans_of(&lines, &tokens);
        Source { path: path.to_owned(), lines, tokens, spans }
    }

    /// The top-level folder: the crate.
    pub fn krate(&self) -> &str {
        self.path.split('/').next().unwrap_or("")
    }

    pub fn is_in_src(&self) -> bool {
        self.path.split('/').nth(1) == Some("src")
    }

    /// The text of token `at`, or nothing past either end.
    pub fn text(&self, at: usize) -> &str {
        self.tokens.get(at).map_or("", |t| t.text.as_str())
    }

    /// Whether the tokens from `at` on are exactly `want`.
    pub fn matches(&self, at: usize, want: &[&str]) -> bool {
        want.iter().enumerate().all(|(i, w)| self.text(at + i) == *w)
    }

    /// Comments on `line` and on the `reach` lines above it; a comment block that begins within reach counts whole.
    pub fn comments_near(&self, line: usize, reach: usize) -> String {
        let mut first = line.saturating_sub(reach);
        while first > 0 && self.lines[first].is_comment_only() && self.lines[first - 1].is_comment_only() {
            first -= 1;
        }
        self.lines[first..=line].iter().map(|l| l.comment.as_str()).collect::<Vec<_>>().join("\n")
    }

    /// The file's own `//!` lines, markers removed.
    pub fn file_docs(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().filter_map(|l| l.comment.trim_start().strip_prefix("//!").map(str::trim))
    }

    /// Ranges of tokens (first, last) that are `use` statements.
    pub fn use_statements(&self) -> Vec<(usize, usize)> {
        let mut found = Vec::new();
        let mut at = 0;
        while at < self.tokens.len() {
            if self.text(at) == "use" {
                let last =
                    (at..self.tokens.len()).find(|&i| self.text(i) == ";").unwrap_or(self.tokens.len() - 1);
                found.push((at, last));
                at = last;
            }
            at += 1;
        }
        found
    }
}

fn is_test_path(path: &str) -> bool {
    let mut parts: Vec<&str> = path.split('/').collect();
    let file = parts.pop().unwrap_or("");
    let stem = file.strip_suffix(".rs").unwrap_or(file);
    parts.iter().any(|p| matches!(*p, "tests" | "benches" | "examples"))
        || matches!(stem, "tests" | "test")
        || stem.ends_with("_tests")
        || stem.ends_with("_test")
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Code,
    LineComment,
    BlockComment(u32),
    Text,
    RawText(usize),
}

/// Cuts a file into lines of code and comment. Strings keep their quotes and lose their contents.
fn split(text: &str) -> Vec<Line> {
    let chars: Vec<char> = text.chars().collect();
    let mut lines = vec![Line::default()];
    let mut state = State::Code;
    let mut at = 0;
    while at < chars.len() {
        let c = chars[at];
        let next = chars.get(at + 1).copied().unwrap_or('\n');
        if c == '\n' {
            if state == State::LineComment {
                state = State::Code;
            }
            lines.push(Line::default());
            at += 1;
            continue;
        }
        let line = lines.last_mut().expect("there is always a last line");
        let mut step = 1;
        match state {
            State::LineComment => line.comment.push(c),
            State::BlockComment(depth) => {
                line.comment.push(c);
                if c == '*' && next == '/' {
                    line.comment.push(next);
                    step = 2;
                    state = if depth == 1 { State::Code } else { State::BlockComment(depth - 1) };
                } else if c == '/' && next == '*' {
                    line.comment.push(next);
                    step = 2;
                    state = State::BlockComment(depth + 1);
                }
            }
            State::Text => match c {
                '\\' if next != '\n' => step = 2,
                '"' => {
                    line.code.push('"');
                    state = State::Code;
                }
                _ => {}
            },
            State::RawText(hashes) => {
                if c == '"' && (1..=hashes).all(|i| chars.get(at + i) == Some(&'#')) {
                    line.code.push('"');
                    step = 1 + hashes;
                    state = State::Code;
                }
            }
            State::Code => match c {
                '/' if next == '/' => {
                    line.comment.push(c);
                    state = State::LineComment;
                }
                '/' if next == '*' => {
                    line.comment.push_str("/*");
                    step = 2;
                    state = State::BlockComment(1);
                }
                '"' => {
                    line.code.push('"');
                    state = State::Text;
                }
                'r' if raw_hashes(&chars, at).is_some() => {
                    let hashes = raw_hashes(&chars, at).unwrap_or(0);
                    line.code.push('"');
                    step = 2 + hashes;
                    state = State::RawText(hashes);
                }
                '\'' => match char_literal_len(&chars, at) {
                    Some(len) => {
                        line.code.push_str("''");
                        step = len;
                    }
                    None => line.code.push(c),
                },
                _ => line.code.push(c),
            },
        }
        at += step;
    }
    lines
}

/// At an `r` that opens a raw string (`r"`, `r#"`, after `b` or `c` too): how many `#` it has.
fn raw_hashes(chars: &[char], at: usize) -> Option<usize> {
    let before = at.checked_sub(1).map(|i| chars[i]);
    let prefix_ok = match before {
        Some('b' | 'c') => {
            at.checked_sub(2).map(|i| chars[i]).is_none_or(|c| !(c.is_alphanumeric() || c == '_'))
        }
        Some(c) => !(c.is_alphanumeric() || c == '_'),
        None => true,
    };
    let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
    (prefix_ok && chars.get(at + 1 + hashes) == Some(&'"')).then_some(hashes)
}

/// At a quote: the length of a character literal, or nothing when it is a lifetime.
fn char_literal_len(chars: &[char], at: usize) -> Option<usize> {
    if chars.get(at + 1) == Some(&'\\') {
        let close = (at + 3..chars.len().min(at + 14)).find(|&i| chars[i] == '\'')?;
        return Some(close - at + 1);
    }
    (chars.get(at + 2) == Some(&'\'')).then_some(3)
}

fn tokens_of(lines: &[Line]) -> Vec<Token> {
    let mut tokens = Vec::new();
    for (line, text) in lines.iter().enumerate() {
        let chars: Vec<char> = text.code.chars().collect();
        let mut at = 0;
        while at < chars.len() {
            let c = chars[at];
            let from = at;
            at += 1;
            if c.is_whitespace() {
                continue;
            }
            if c.is_alphanumeric() || c == '_' {
                while at < chars.len() && (chars[at].is_alphanumeric() || chars[at] == '_') {
                    at += 1;
                }
            } else if c == ':' && chars.get(at) == Some(&':') {
                at += 1;
            }
            tokens.push(Token { line, text: chars[from..at].iter().collect() });
        }
    }
    tokens
}

/// An item that is compiled on a condition: its lines, and which of the conditions we care for.
struct Conditional {
    first_line: usize,
    last_line: usize,
    is_test: bool,
    is_off_loom: bool,
}

/// Items under `#[test]` or under a `cfg` that names `test`, or `loom` inside `not(...)`. `not(test)` is no test.
fn conditional_items(tokens: &[Token]) -> Vec<Conditional> {
    let text = |i: usize| tokens.get(i).map_or("", |t| t.text.as_str());
    let mut found = Vec::new();
    for at in 0..tokens.len() {
        if text(at) != "#" || text(at + 1) != "[" || !matches!(text(at + 2), "cfg" | "test") {
            continue;
        }
        let Some(close) = matching(tokens, at + 1) else { continue };
        let names = |name: &str, negated: bool| {
            (at + 2..close)
                .any(|i| text(i) == name && (text(i - 1) == "(" && text(i - 2) == "not") == negated)
        };
        let (is_test, is_off_loom) = (names("test", false), names("loom", true));
        if (is_test || is_off_loom)
            && let Some(last) = item_end(tokens, close + 1)
        {
            let (first_line, last_line) = (tokens[at].line, tokens[last].line);
            found.push(Conditional { first_line, last_line, is_test, is_off_loom });
        }
    }
    found
}

/// From the first token of an item: the token that ends it, its `;` or its closing brace.
fn item_end(tokens: &[Token], from: usize) -> Option<usize> {
    let mut at = from;
    while at < tokens.len() {
        match tokens[at].text.as_str() {
            "(" | "[" => at = matching(tokens, at)?,
            "{" => return matching(tokens, at),
            ";" => return Some(at),
            _ => {}
        }
        at += 1;
    }
    None
}

/// The token that closes the bracket at `open`.
fn matching(tokens: &[Token], open: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}

fn spans_of(lines: &[Line], tokens: &[Token]) -> Vec<Span> {
    let mut spans = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        let opens_item = matches!(token.text.as_str(), "fn" | "impl" | "mod" | "trait");
        let is_type = tokens.get(at + 1).is_some_and(|t| t.text == "(");
        if !opens_item || is_type {
            continue;
        }
        if let Some(last) = item_end(tokens, at + 1) {
            let docs = docs_above(lines, token.line);
            spans.push(Span { first_line: token.line, last_line: tokens[last].line, docs });
        }
    }
    spans
}

/// The comments directly above an item, attributes in between skipped, and those at the end of its first line.
pub fn docs_above(lines: &[Line], item_line: usize) -> String {
    let mut docs = vec![lines[item_line].comment.clone()];
    for line in lines[..item_line].iter().rev() {
        if !line.is_comment_only() && !line.is_attribute() {
            break;
        }
        docs.push(line.comment.clone());
    }
    docs.reverse();
    docs.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> String {
        split(text).iter().map(|l| l.code.as_str()).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn strings_and_comments_are_no_code() {
        assert_eq!(code("a(\"unsafe \\\" x\"); // unsafe"), "a(\"\"); ");
        assert_eq!(code("a(r#\"un\"safe\"#, br\"x\\\", c\"y\")"), "a(\"\", b\"\", c\"\")");
        assert_eq!(code("a /* x /* y */ z */ b"), "a  b");
        assert_eq!(code("'\"' 'a 'x' '\\'' '\\u{1F600}' b"), "'' 'a '' '' '' b");
    }

    #[test]
    fn a_string_over_several_lines_stays_a_string() {
        assert_eq!(code("let s = \"one\nunsafe two\nthree\"; x"), "let s = \"\n\n\"; x");
    }

    #[test]
    fn test_modules_are_test_lines_and_not_test_is_not() {
        let s = Source::new(
            "dvk/src/a.rs",
            "fn a() {}\n#[cfg(test)]\nmod tests {\n  fn b() {}\n}\n#[cfg(not(test))]\nfn c() {\n}",
        );
        let tests: Vec<bool> = s.lines.iter().map(|l| l.is_test).collect();
        assert_eq!(tests, [false, true, true, true, true, false, false, false]);
    }

    #[test]
    fn items_the_model_checker_never_sees_are_known() {
        let s = Source::new(
            "shm/src/a.rs",
            "#[cfg(not(loom))]\nuse a;\n#[cfg(loom)]\nuse b;\n#[cfg(all(test, not(loom)))]\nmod c {}",
        );
        let off: Vec<bool> = s.lines.iter().map(|l| l.is_off_loom).collect();
        assert_eq!(off, [true, true, false, false, true, true]);
        assert!(s.lines[5].is_test && !s.lines[1].is_test);
    }

    #[test]
    fn files_of_tests_are_test_code() {
        for path in
            ["shm/tests/loom.rs", "dvk/src/route/tests.rs", "bench/benches/a.rs", "shm/src/ring_tests.rs"]
        {
            assert!(Source::new(path, "fn a() {}").lines[0].is_test, "{path}");
        }
        assert!(!Source::new("ci/src/stages/cargo.rs", "fn a() {}").lines[0].is_test);
    }

    #[test]
    fn an_item_knows_its_lines_and_docs() {
        let s = Source::new("a/src/a.rs", "/// One.\n#[inline]\nfn f(x: [u8; 4]) -> u8 {\n  0\n}\n");
        assert_eq!((s.spans[0].first_line, s.spans[0].last_line), (2, 4));
        assert!(s.spans[0].docs.contains("One."));
    }
}
