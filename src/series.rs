//! Files whose number the store decides: one read lists, and each version that it names is read and written.

use crate::backends::Backend;
use crate::error::{Kind, Problem};
use crate::plan::{Answer, Answers, Output, Plan, check_paths};

/// Versions of one object, each in a file of its own (azure.md 8).
pub struct Series<B: Backend> {
    /// Index of the read that lists; its answer is of [that form](crate::plan::Form::Versions).
    pub list: usize,
    /// The read of a version that `list` names.
    pub read: fn(list: &B::Read, version: &str) -> B::Read,
    /// Number of the plan's outputs that come before it.
    pub at: usize,
    /// The version to start from; else the newest.
    pub start: Option<String>,
    /// Versions at most.
    pub most: usize,
    /// A word for the log where more versions come than this number.
    pub surplus: Option<(usize, String)>,
    /// The files of each version; the last part of a path starts with the version's number.
    pub outputs: Vec<Output>,
}

impl<B: Backend> Series<B> {
    fn versions(&self, answer: &Result<Answer, Problem>) -> Result<Vec<String>, Problem> {
        let reading = answer.as_ref().map_err(Clone::clone)?;
        let listed = std::str::from_utf8(reading.value.expose()).unwrap_or_default();
        let all: Vec<_> = listed.lines().collect();
        let first = match &self.start {
            None => 0,
            Some(start) => all.iter().position(|version| version == start).unwrap_or(all.len()),
        };
        if first < all.len() {
            return Ok(all[first..].iter().take(self.most).map(|version| (*version).to_owned()).collect());
        }
        let what = match &self.start {
            Some(start) => format!("version {start} is not among the {} enabled versions", all.len()),
            None => "no version is enabled".to_owned(),
        };
        Err(Problem::new(Kind::NotFound, what).hint("enable the version, or start from another one"))
    }
}

/// A plan whose series the store has answered.
pub struct Unfolded<B: Backend> {
    /// All files, in the user's order. Their reads are those of the plan, then `reads`.
    pub outputs: Vec<Output>,
    /// Further requests, each once; or why there is none to make.
    pub reads: Vec<Result<B::Read, Problem>>,
    /// Files that cannot stand beside each other.
    pub clashes: Vec<Problem>,
    /// Oddities that only the answers show.
    pub warnings: Vec<String>,
}

impl<B: Backend> Plan<B> {
    /// Puts the files of every series where they belong, now that the store has said how many there are.
    pub fn unfold(&self, answers: &Answers) -> Unfolded<B> {
        let mut unfolded = Unfolded {
            outputs: Vec::with_capacity(self.outputs.len()),
            reads: Vec::new(),
            clashes: Vec::new(),
            warnings: Vec::new(),
        };
        let mut rest = self.outputs.iter();
        let mut taken = 0;
        for series in &self.series {
            unfolded.outputs.extend(rest.by_ref().take(series.at - taken).cloned());
            taken = series.at;
            match series.versions(&answers[series.list]) {
                Ok(versions) => self.files(series, &versions, &mut unfolded),
                Err(problem) => {
                    let read = self.reads.len() + unfolded.reads.len();
                    unfolded.reads.push(Err(problem));
                    let last = series.outputs.last().map(|last| Output { read, ..last.clone() });
                    unfolded.outputs.extend(last);
                }
            }
        }
        unfolded.outputs.extend(rest.cloned());
        let mut slips = Vec::new();
        unfolded.clashes = check_paths(unfolded.outputs.iter(), Some(&mut slips));
        unfolded.warnings.extend(slips.iter().map(ToString::to_string));
        unfolded
    }

    fn files(&self, series: &Series<B>, versions: &[String], unfolded: &mut Unfolded<B>) {
        let surplus = series.surplus.iter().filter(|(asked, _)| versions.len() > *asked);
        unfolded.warnings.extend(surplus.map(|(_, word)| word.clone()));
        for (number, version) in (0..).zip(versions) {
            let read = (series.read)(&self.reads[series.list], version);
            let known = |other: &Result<B::Read, Problem>| other.as_ref().is_ok_and(|other| *other == read);
            let at = unfolded.reads.iter().position(known).unwrap_or(unfolded.reads.len());
            if at == unfolded.reads.len() {
                unfolded.reads.push(Ok(read));
            }
            let read = self.reads.len() + at;
            unfolded.outputs.extend(series.outputs.iter().map(|output| output.numbered(read, number)));
        }
    }
}
