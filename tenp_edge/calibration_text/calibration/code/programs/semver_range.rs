//! Compare version numbers and match them against simple requirements such as
//! `^1.4`, `~0.9.2`, `>=2, <3`.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
}

#[derive(Debug, PartialEq, Eq)]
pub enum ParseError {
    Empty,
    TooManyParts,
    NotANumber(String),
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ParseError::Empty => write!(f, "empty version"),
            ParseError::TooManyParts => write!(f, "more than three components"),
            ParseError::NotANumber(s) => write!(f, "`{s}` is not a number"),
        }
    }
}

impl std::error::Error for ParseError {}

/// Numbers given, at most three. `1.4` keeps its length so that `^0.0` and
/// `^0.0.0` can differ.
fn parts(s: &str) -> Result<Vec<u32>, ParseError> {
    let s = s.trim();
    if s.is_empty() {
        return Err(ParseError::Empty);
    }
    let nums = s
        .split('.')
        .map(|p| p.parse().map_err(|_| ParseError::NotANumber(p.to_owned())))
        .collect::<Result<Vec<_>, _>>()?;
    if nums.len() > 3 {
        return Err(ParseError::TooManyParts);
    }
    Ok(nums)
}

fn padded(p: &[u32]) -> Version {
    let at = |i: usize| p.get(i).copied().unwrap_or(0);
    Version { major: at(0), minor: at(1), patch: at(2) }
}

impl FromStr for Version {
    type Err = ParseError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        parts(s).map(|p| padded(&p))
    }
}

/// Half-open range `[low, high)`; `None` means no upper end.
#[derive(Debug, PartialEq, Eq)]
struct Range {
    low: Version,
    high: Option<Version>,
}

fn bump(p: &[u32], index: usize) -> Version {
    let mut q = vec![0; 3];
    q[..=index].copy_from_slice(&p[..=index]);
    q[index] += 1;
    padded(&q)
}

fn range(clause: &str) -> Result<Range, ParseError> {
    const ZERO: Version = Version { major: 0, minor: 0, patch: 0 };
    let clause = clause.trim();
    if let Some(rest) = clause.strip_prefix('^') {
        let p = parts(rest)?;
        // The left-most non-zero component must not change.
        let pin = p.iter().position(|&n| n != 0).unwrap_or(p.len() - 1);
        return Ok(Range { low: padded(&p), high: Some(bump(&p, pin)) });
    }
    if let Some(rest) = clause.strip_prefix('~') {
        let p = parts(rest)?;
        let pin = (p.len() - 1).min(1);
        return Ok(Range { low: padded(&p), high: Some(bump(&p, pin)) });
    }
    if let Some(rest) = clause.strip_prefix(">=") {
        return Ok(Range { low: rest.parse()?, high: None });
    }
    if let Some(rest) = clause.strip_prefix('<') {
        return Ok(Range { low: ZERO, high: Some(rest.parse()?) });
    }
    let p = parts(clause)?;
    Ok(Range { low: padded(&p), high: Some(bump(&p, p.len() - 1)) })
}

pub fn matches(requirement: &str, version: Version) -> Result<bool, ParseError> {
    for clause in requirement.split(',') {
        let r = range(clause)?;
        let below = r.high.map_or(true, |h| version.cmp(&h) == Ordering::Less);
        if version < r.low || !below {
            return Ok(false);
        }
    }
    Ok(true)
}

fn main() {
    let mut args = std::env::args().skip(1);
    let (Some(req), Some(ver)) = (args.next(), args.next()) else {
        eprintln!("usage: semver_range REQUIREMENT VERSION");
        std::process::exit(2);
    };
    match ver.parse().and_then(|v| matches(&req, v)) {
        Ok(true) => println!("yes"),
        Ok(false) => {
            println!("no");
            std::process::exit(1);
        }
        Err(e) => {
            eprintln!("error: {e}");
            std::process::exit(2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn m(req: &str, v: &str) -> bool {
        matches(req, v.parse().unwrap()).unwrap()
    }

    #[test]
    fn caret_pins_the_first_nonzero() {
        assert!(m("^1.4", "1.9.0"));
        assert!(!m("^1.4", "2.0.0"));
        assert!(m("^0.3.1", "0.3.8"));
        assert!(!m("^0.3.1", "0.4.0"));
        assert!(!m("^0.0.3", "0.0.4"));
    }

    #[test]
    fn tilde_and_lists() {
        assert!(m("~0.9.2", "0.9.40"));
        assert!(!m("~0.9.2", "0.10.0"));
        assert!(m(">=2, <3", "2.7.1"));
        assert!(!m(">=2, <3", "3.0.0"));
    }

    #[test]
    fn numbers_compare_as_numbers() {
        assert!("1.10.0".parse::<Version>().unwrap() > "1.9.9".parse().unwrap());
        assert_eq!("1.x".parse::<Version>(), Err(ParseError::NotANumber("x".into())));
    }
}
