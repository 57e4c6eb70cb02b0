//! The book under `docs/book`: that it hangs together, that its programs are programs which cargo builds, that its commands
//! do what it says, and that its reference says what the code does.

#[path = "book/console.rs"]
mod console;
#[path = "book/links.rs"]
mod links;
#[path = "book/pages.rs"]
mod pages;
#[path = "book/reference.rs"]
mod reference;
