//! The page about the cluster file is made from the types that read one.

use super::pages::folder;

const PAGE: &str = "cluster-file.md";
/// Above it, a person writes.
const MARK: &str = "<!-- What follows is generated: DVS_BOOK_WRITE=1 cargo test -p dvs --test book -->\n";

#[test]
fn the_page_of_the_cluster_file_says_what_the_types_say() {
    let file = folder().join(PAGE);
    let page = std::fs::read_to_string(&file).expect("the page");
    let (written, generated) = page.split_once(MARK).unwrap_or_else(|| panic!("{PAGE} has no line {MARK}"));
    let wanted = node::config::reference();
    if std::env::var_os("DVS_BOOK_WRITE").is_some() {
        std::fs::write(&file, format!("{written}{MARK}\n{wanted}")).expect("the page, written");
        return;
    }
    assert!(
        generated.trim() == wanted.trim(),
        "{PAGE} is not what node/src/config/shape.rs says: DVS_BOOK_WRITE=1 cargo test -p dvs --test book\n{wanted}"
    );
}
