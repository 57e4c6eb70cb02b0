//! `dvs send`: one message by hand, as a rendezvous, a post or a request.

use std::io::Read;
use std::path::Path;

use abi::Endpoint;
use abi::limits::{INLINE_BYTES_MAX, LOAN_BYTES_MAX};
use anyhow::{Context, Result};
use dvk::{Binding, Message, SendError, SendrecError};
use serde::Serialize;

use crate::cli::SendArgs;
use crate::cluster::Place;
use crate::failure::{self, Exit, failure};
use crate::interrupt;
use crate::output::{Output, bytes};
use crate::seat::Seat;
use crate::talk::{Deadline, Shown, Whom, daemon_lost, find};

/// What a `send` answers.
#[derive(Serialize)]
struct Sent {
    ok: bool,
    /// `sent`, `posted` or `called`.
    how: &'static str,
    from: String,
    to: String,
    kind: u32,
    bytes: usize,
    loan: bool,
    reply: Option<Shown>,
}

pub fn send(place: &Place, args: SendArgs, output: &Output) -> Result<()> {
    interrupt::note_signals()?;
    let seat = Seat::choose(place, &args.seat)?;
    // Calls are not cut by signals, nor is reading: both may wait where nobody looks for one.
    let sent = interrupt::unless(move || {
        let payload = payload(&args)?;
        let deadline = Deadline::after(Some(args.timeout));
        let mut me = seat.bind()?;
        let to = find(&mut me, &args.to, &args.seat.dc, deadline)?;
        let sent = perform(&mut me, to, &args, &payload, deadline)?;
        me.unbind().map_err(|why| daemon_lost(&why))?;
        Ok(sent)
    });
    let sent = sent.map_err(cut)?;
    output.answer(&sent, |_| match &sent.reply {
        Some(reply) => reply.payload().to_owned(),
        None => format!("{} {} to {}", sent.how, bytes(sent.bytes as u64), sent.to),
    })
}

/// Cut short, a message may be in the lane already.
fn cut(why: anyhow::Error) -> anyhow::Error {
    if failure::of(&why).is_some_and(|f| f.exit == Exit::Interrupted) {
        let next = "a message that was under way may still be delivered, once";
        return failure(Exit::Interrupted, "interrupted", next);
    }
    why
}

fn payload(args: &SendArgs) -> Result<Vec<u8>> {
    let payload = match (&args.file, args.text.as_deref()) {
        (Some(file), _) => of_file(file)?,
        (None, Some("-")) => {
            let mut all = Vec::new();
            // One byte more than can be sent tells that there is too much.
            let mut limited = std::io::stdin().lock().take(u64::from(LOAN_BYTES_MAX) + 1);
            limited.read_to_end(&mut all).context("standard input cannot be read")?;
            all
        }
        (None, text) => text.unwrap_or("").as_bytes().to_vec(),
    };
    if payload.len() > LOAN_BYTES_MAX as usize {
        return Err(too_long(payload.len() as u64));
    }
    Ok(payload)
}

fn of_file(file: &Path) -> Result<Vec<u8>> {
    let refused = |why: std::io::Error| {
        let what = format!("{} cannot be read: {why}", file.display());
        failure(Exit::Config, what, "give a readable file, or `-` for standard input")
    };
    let len = std::fs::metadata(file).map_err(refused)?.len();
    if len > u64::from(LOAN_BYTES_MAX) {
        return Err(too_long(len));
    }
    std::fs::read(file).map_err(refused)
}

fn too_long(len: u64) -> anyhow::Error {
    let what = format!("{} are too many for one message", bytes(len));
    failure(Exit::Config, what, format!("a loan takes {} at most", bytes(LOAN_BYTES_MAX.into())))
}

fn perform(
    me: &mut Binding,
    to: Endpoint,
    args: &SendArgs,
    payload: &[u8],
    deadline: Deadline,
) -> Result<Sent> {
    let loan = payload.len() > INLINE_BYTES_MAX;
    let message = if loan {
        let mut loan = me.loan(payload.len()).context("no loan for the payload")?;
        loan.copy_from_slice(payload);
        Message::new(args.kind).with(loan)
    } else {
        Message::new(args.kind).inline(payload)
    };
    let (how, reply) = if args.call {
        let reply = me.sendrec(to, message, deadline.left()).map_err(|why| call_ended(why, &args.to))?;
        ("called", Some(Shown::of(&reply)))
    } else if args.post {
        me.post_all(to, message, deadline.left()).map_err(|why| send_ended(why, &args.to))?;
        ("posted", None)
    } else {
        me.send(to, message, deadline.left()).map_err(|why| send_ended(why, &args.to))?;
        ("sent", None)
    };
    let (from, to) = (me.whoami().to_string(), to.to_string());
    Ok(Sent { ok: true, how, from, to, kind: args.kind, bytes: payload.len(), loan, reply })
}

const LONGER: &str = "give it longer with --timeout; does the receiver receive?";
const RULES: &str = "`docs/privileges.md` says what a rule may allow";
const LOOK: &str = "`dvs ps` shows who is bound, `dvs status` how the links do";

fn send_ended(why: SendError, to: &Whom) -> anyhow::Error {
    let (exit, next) = match why {
        SendError::Unavailable(why) => return daemon_lost(&why),
        SendError::Interrupted => (Exit::Interrupted, "send it again"),
        SendError::TimedOut
        | SendError::TimedOutTaken
        | SendError::TimedOutUnknown
        | SendError::WouldBlock => (Exit::TimedOut, LONGER),
        SendError::DeadDestination | SendError::DeliveryUnknown => (Exit::Failed, LOOK),
        SendError::NotPermitted => (Exit::Refused, RULES),
        SendError::Full => (Exit::Failed, "the receiver has to drop views first"),
        SendError::Corrupt(_) => (Exit::Failed, "are both sides of one version?"),
    };
    failure(exit, format!("the message to {to}: {why}"), next)
}

fn call_ended(why: SendrecError, to: &Whom) -> anyhow::Error {
    let (exit, next) = match why {
        SendrecError::Unavailable(why) => return daemon_lost(&why),
        SendrecError::Interrupted => (Exit::Interrupted, "send it again"),
        SendrecError::TimedOut
        | SendrecError::TimedOutTaken
        | SendrecError::TimedOutUnknown
        | SendrecError::WouldBlock => (Exit::TimedOut, LONGER),
        SendrecError::DeadDestination | SendrecError::DeadSource | SendrecError::DeliveryUnknown => {
            (Exit::Failed, LOOK)
        }
        SendrecError::Abandoned => {
            (Exit::Failed, "the server does not answer this kind; `dvs receive --echo` answers all")
        }
        SendrecError::Deadlock => (Exit::Failed, "the server must answer before it calls"),
        SendrecError::NotPermitted => (Exit::Refused, RULES),
        SendrecError::Full => (Exit::Failed, "the receiver has to drop views first"),
        SendrecError::Corrupt(_) => (Exit::Failed, "are both sides of one version?"),
    };
    failure(exit, format!("the request to {to}: {why}"), next)
}
