//! `dvs receive`: shows what is sent to an endpoint, and answers requests if it is to.

use anyhow::Result;
use dvk::{Binding, Delivery, From, Message, ReceiveError, Wait, What};
use serde::Serialize;

use crate::cli::ReceiveArgs;
use crate::cluster::Place;
use crate::failure::{Exit, failure};
use crate::interrupt;
use crate::output::{Output, print};
use crate::seat::Seat;
use crate::talk::{Deadline, Shown, daemon_lost, find};

/// A delivery, and what became of it.
#[derive(Serialize)]
struct Line {
    #[serde(flatten)]
    shown: Shown,
    /// Of a request.
    answered: Option<bool>,
}

/// How receiving ended.
enum End {
    /// As many came as were asked for, or nobody reads what is printed.
    Enough,
    TimedOut,
    SourceEnded,
}

pub fn receive(place: &Place, args: &ReceiveArgs, output: &Output) -> Result<()> {
    interrupt::note_signals()?;
    let seat = Seat::choose(place, &args.seat)?;
    let mut me = seat.bind()?;
    me.set_wait(Wait::Block);
    eprintln!("bound as {}: Ctrl-C ends it", me.whoami());
    let from = match &args.from {
        Some(whom) => From::Endpoint(find(&mut me, whom, &args.seat.dc, Deadline::after(args.timeout))?),
        None => From::Any,
    };
    let mut came = 0;
    let end = show_all(&mut me, from, args, output, &mut came)?;
    me.unbind().map_err(|why| daemon_lost(&why))?;
    let missing = came < args.count.unwrap_or(1);
    let short = || args.count.map_or("nothing came".to_owned(), |n| format!("{came} of {n} came"));
    match end {
        End::TimedOut if missing => {
            let next = "give it longer with --timeout; `dvs send` sends something";
            Err(failure(Exit::TimedOut, format!("{}, then the time was over", short()), next))
        }
        End::SourceEnded if missing => {
            let what = format!("{}, then its source ended", short());
            Err(failure(Exit::Failed, what, "`dvs ps` shows who is bound"))
        }
        End::Enough | End::TimedOut | End::SourceEnded => Ok(()),
    }
}

fn show_all(
    me: &mut Binding,
    from: From,
    args: &ReceiveArgs,
    output: &Output,
    came: &mut u64,
) -> Result<End> {
    while args.count.is_none_or(|count| *came < count) {
        let deadline = Deadline::after(args.timeout);
        let delivery = loop {
            interrupt::check()?;
            match me.receive(from, deadline.glance()) {
                Ok(delivery) => break delivery,
                Err(ReceiveError::TimedOut | ReceiveError::WouldBlock) if deadline.is_over() => {
                    return Ok(End::TimedOut);
                }
                Err(ReceiveError::TimedOut | ReceiveError::WouldBlock | ReceiveError::Interrupted) => {}
                Err(ReceiveError::DeadSource) => return Ok(End::SourceEnded),
                Err(ReceiveError::Unavailable(why)) => return Err(daemon_lost(&why)),
                // The pair is closed; the others go on.
                Err(ReceiveError::Corrupt(why)) if from == From::Any => eprintln!("dvs: {why}"),
                Err(ReceiveError::Corrupt(why)) => {
                    return Err(failure(Exit::Failed, why.to_string(), "are both sides of one version?"));
                }
            }
        };
        *came += 1;
        let answered = match delivery.what() {
            What::Request { .. } => Some(args.echo && echo(me, &delivery)),
            What::Message | What::Notification { .. } | What::Woken | What::Warned | What::Reply => None,
        };
        let line = Line { shown: Shown::of(&delivery), answered };
        let text = if output.json { serde_json::to_string(&line)? } else { line.shown.line() };
        if !print(&text) {
            return Ok(End::Enough);
        }
    }
    Ok(End::Enough)
}

/// Answers with what came. A client that no longer waits is told of, and no reason to end.
fn echo(me: &mut Binding, request: &Delivery) -> bool {
    let mut answer = Message::new(request.kind()).inline(request.inline());
    if let Some(view) = request.view() {
        match me.loan(view.len()) {
            Ok(mut loan) => {
                view.copy_to(&mut loan);
                answer = answer.with(loan);
            }
            Err(why) => {
                eprintln!("dvs: {} was not answered: {why}", request.source());
                return false;
            }
        }
    }
    match me.reply(request, answer) {
        Ok(()) => true,
        Err(why) => {
            eprintln!("dvs: {} was not answered: {why}", request.source());
            false
        }
    }
}
