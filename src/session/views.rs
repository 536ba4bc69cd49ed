//! Which view models each client has live, which upstreams they were requested from and with what: from a `Request_VM` to its
//! `Dispose_VM`. It is what a client's view models are requested again from when its lane is lost (contract 6.3).
//!
//! A view model is one entry in a table, linked into its client's list in the order of the requests; names and arguments are kept once,
//! since all clients of one page have the same view models. A client without any costs four bytes.
use crate::limits::{VIEW_NAMES_BYTES_MAX, VIEWS_PER_CLIENT_MAX};
use hashbrown::HashTable;
use std::hash::{BuildHasher, RandomState};

const NONE: u32 = u32::MAX;

/// Upstreams by their places in the configuration, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Upstreams(pub u16);

impl Upstreams {
    pub fn has(self, index: usize) -> bool {
        self.0 >> index & 1 == 1
    }
    pub fn add(&mut self, index: usize) {
        self.0 |= 1 << index;
    }
    pub fn with(self, other: Upstreams) -> Upstreams {
        Upstreams(self.0 | other.0)
    }
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
    /// In the order of the configuration.
    pub fn each(self) -> impl Iterator<Item = usize> {
        let mut left = self.0;
        core::iter::from_fn(move || {
            let index = left.trailing_zeros() as usize;
            left &= left.wrapping_sub(1);
            (index < u16::BITS as usize).then_some(index)
        })
    }
}

/// A client's view models: the head of its list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViewList(u32);

impl Default for ViewList {
    fn default() -> Self {
        ViewList(NONE)
    }
}

#[derive(Clone, Copy)]
struct View {
    name: u32,
    /// The same client's next view model.
    next: u32,
    upstreams: Upstreams,
    opening: Opening,
    /// What it was last requested with; NONE where that was nothing, or null.
    argument: u32,
    /// Its request has left for the app server that answers.
    requested: bool,
    /// Its argument was too much to be kept, so nobody else can request it again.
    unkept: bool,
    /// Its client has disposed of it, and the app server is yet to be told.
    leaving: bool,
}

/// A name or an argument.
struct Name {
    text: Box<[u8]>,
    uses: u32,
}

/// What one live view model takes: the entry, and its place in the list of free ones; names and arguments apart.
pub const VIEW_BYTES: usize = size_of::<View>() + size_of::<u32>();

/// ... and what a name or an argument takes beside its text: its places in the list, in that of free ones and in the table, which grow
/// by doubling, and what the allocator adds.
pub const NAME_BYTES: usize = 2 * (size_of::<Name>() + size_of::<u32>() + size_of::<u32>() + 1) + 24;

/// Tells a view model that was opened from one that had the same name before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opening(u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    New(Opening),
    /// Requested again, which is no change (contract 1.3).
    Already,
    /// The client has `VIEWS_PER_CLIENT_MAX` view models, or with this one their names would have more than `VIEW_NAMES_BYTES_MAX`.
    TooMany,
}

/// The view models of a shard's clients. Names are plain text, without JSON's escapes.
#[derive(Default)]
pub struct Views {
    /// Indices into `names`, by what stands there: a text is not kept a second time to be found.
    by_text: HashTable<u32>,
    /// Its keys are nobody's to guess: the texts are clients'.
    hasher: RandomState,
    names: Vec<Name>,
    free_names: Vec<u32>,
    views: Vec<View>,
    free_views: Vec<u32>,
    last_opening: Opening,
}

impl Views {
    /// Live view models of all clients.
    pub fn len(&self) -> usize {
        self.views.len() - self.free_views.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where a live view model was requested from.
    pub fn upstreams(&self, list: ViewList, name: &[u8]) -> Option<Upstreams> {
        self.each(list).find(|(live, _)| *live == name).map(|(_, upstreams)| upstreams)
    }

    /// What a live view model was last requested with, if that is known; null as None.
    pub fn argument(&self, list: ViewList, name: &[u8]) -> Option<Option<&[u8]>> {
        let view = self.all(list).find(|view| *self.names[view.name as usize].text == *name && !view.leaving)?;
        (!view.unkept).then(|| self.text(view.argument))
    }

    /// Keeps what a live view model was last requested with, raw JSON; so many bytes of all arguments of a client at the most.
    pub fn keep(&mut self, list: ViewList, name: &[u8], argument: Option<&[u8]>, bytes_max: usize) {
        let (mut others, mut found, mut at) = (0, NONE, list.0);
        while at != NONE {
            let view = self.views[at as usize];
            if *self.names[view.name as usize].text == *name && !view.leaving {
                found = at;
            } else {
                others += self.text(view.argument).map_or(0, <[u8]>::len);
            }
            at = view.next;
        }
        if found == NONE {
            return;
        }
        let argument = argument.filter(|argument| *argument != b"null");
        let unkept = argument.is_some_and(|argument| others + argument.len() > bytes_max);
        let new = argument.filter(|_| !unkept).map_or(NONE, |argument| self.name(argument));
        let old = core::mem::replace(&mut self.views[found as usize].argument, new);
        self.views[found as usize].unkept = unkept;
        self.drop_name(old);
    }

    /// The request of a view model that was opened has left for the app server that answers.
    pub fn requested(&mut self, list: ViewList, opening: Opening) {
        let mut at = list.0;
        while at != NONE {
            let view = &mut self.views[at as usize];
            if view.opening == opening {
                view.requested = true;
                return;
            }
            at = view.next;
        }
    }

    /// Can all that was requested from an upstream be requested again?
    pub fn is_replayable(&self, list: ViewList, upstream: usize) -> bool {
        !self.all(list).any(|view| view.requested && view.unkept && view.upstreams.has(upstream))
    }

    /// What was requested from an upstream and is live, as far as the app server knows, with its argument, in the order of the requests;
    /// without what cannot be requested again.
    pub fn requested_from(&self, list: ViewList, upstream: usize) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        let is_meant = move |view: &View| view.requested && !view.unkept && view.upstreams.has(upstream);
        let requested = self.all(list).filter(is_meant);
        requested.map(|view| (&*self.names[view.name as usize].text, self.text(view.argument)))
    }

    fn all(&self, list: ViewList) -> impl Iterator<Item = View> {
        let mut at = list.0;
        core::iter::from_fn(move || {
            let view = self.views.get(at as usize)?;
            at = view.next;
            Some(*view)
        })
    }

    fn text(&self, name: u32) -> Option<&[u8]> {
        self.names.get(name as usize).map(|name| &*name.text)
    }

    /// The client's view models, oldest first.
    pub fn each(&self, list: ViewList) -> impl Iterator<Item = (&[u8], Upstreams)> {
        let live = self.all(list).filter(|view| !view.leaving);
        live.map(|view| (&*self.names[view.name as usize].text, view.upstreams))
    }

    pub fn open(&mut self, list: &mut ViewList, name: &[u8], upstreams: Upstreams) -> Opened {
        let (mut count, mut bytes, mut last, mut at) = (0, name.len(), NONE, list.0);
        while at != NONE {
            let view = self.views[at as usize];
            let text = &self.names[view.name as usize].text;
            if **text == *name && !view.leaving {
                return Opened::Already;
            }
            count += 1;
            bytes += text.len();
            last = at;
            at = view.next;
        }
        if count >= VIEWS_PER_CLIENT_MAX || bytes > VIEW_NAMES_BYTES_MAX {
            return Opened::TooMany;
        }
        // It wraps around after more than any client can have waiting.
        self.last_opening.0 = self.last_opening.0.wrapping_add(1);
        let opening = self.last_opening;
        let name = self.name(name);
        let view = View {
            name,
            next: NONE,
            upstreams,
            opening,
            argument: NONE,
            requested: false,
            unkept: false,
            leaving: false,
        };
        let index = match self.free_views.pop() {
            Some(index) => {
                self.views[index as usize] = view;
                index
            }
            None => {
                self.views.push(view);
                self.views.len() as u32 - 1
            }
        };
        match last {
            NONE => list.0 = index,
            last => self.views[last as usize].next = index,
        }
        Opened::New(opening)
    }

    /// `Dispose_VM`: the view model is gone for its client, and so are those whose names continue its own behind a dot (contract 1.3).
    /// Returns where they had been requested from. They are kept until the app server has been told (`left`): whoever requests its view
    /// models again before that needs them, because what was said to them goes first.
    pub fn close(&mut self, list: ViewList, name: &[u8]) -> Upstreams {
        let mut upstreams = Upstreams::default();
        let mut at = list.0;
        while at != NONE {
            let view = &mut self.views[at as usize];
            if !view.leaving && is_part_of(&self.names[view.name as usize].text, name) {
                view.leaving = true;
                upstreams = upstreams.with(view.upstreams);
            }
            at = view.next;
        }
        upstreams
    }

    /// The last of all openings so far.
    pub fn last_opening(&self) -> Opening {
        self.last_opening
    }

    /// An upstream's app server has been told of a `Dispose_VM` of what was open then, or need not be.
    pub fn left(&mut self, list: &mut ViewList, upstream: usize, name: &[u8], last: Opening) {
        // Openings wrap around.
        let is_older = |opening: Opening| last.0.wrapping_sub(opening.0) < u32::MAX / 2;
        let has_left = |view: &View| view.leaving && view.upstreams.has(upstream) && is_older(view.opening);
        self.remove(list, |text, view| has_left(view) && is_part_of(text, name));
    }

    fn remove(&mut self, list: &mut ViewList, is_it: impl Fn(&[u8], &View) -> bool) {
        let (mut before, mut at) = (NONE, list.0);
        while at != NONE {
            let view = self.views[at as usize];
            let next = view.next;
            if is_it(&self.names[view.name as usize].text, &view) {
                match before {
                    NONE => list.0 = next,
                    before => self.views[before as usize].next = next,
                }
                self.drop_view(at);
            } else {
                before = at;
            }
            at = next;
        }
    }

    /// As if it had never been opened: its request was refused. One that was opened since, after a `Dispose_VM`, stays.
    pub fn cancel(&mut self, list: &mut ViewList, opened: Opening) {
        self.remove(list, |_, view| view.opening == opened);
    }

    /// As if it had never been opened: the app server has none of this name.
    pub fn forget(&mut self, list: &mut ViewList, name: &[u8]) {
        self.remove(list, |text, view| text == name && !view.leaving);
    }

    /// An upstream can make nothing of a live view model and is not asked for it again; the others go on with it.
    pub fn spare(&mut self, list: ViewList, upstream: usize, name: &[u8]) {
        let mut at = list.0;
        while at != NONE {
            let view = &mut self.views[at as usize];
            if *self.names[view.name as usize].text == *name && !view.leaving {
                view.upstreams.0 &= !(1 << upstream);
            }
            at = view.next;
        }
    }

    /// The client is gone.
    pub fn close_all(&mut self, list: &mut ViewList) {
        while list.0 != NONE {
            let at = list.0;
            list.0 = self.views[at as usize].next;
            self.drop_view(at);
        }
    }

    fn name(&mut self, text: &[u8]) -> u32 {
        let hash = self.hasher.hash_one(text);
        if let Some(index) = self.by_text.find(hash, |index| *self.names[*index as usize].text == *text) {
            self.names[*index as usize].uses += 1;
            return *index;
        }
        let name = Name { text: text.into(), uses: 1 };
        let index = match self.free_names.pop() {
            Some(index) => {
                self.names[index as usize] = name;
                index
            }
            None => {
                self.names.push(name);
                self.names.len() as u32 - 1
            }
        };
        let (names, hasher) = (&self.names, &self.hasher);
        self.by_text.insert_unique(hash, index, |index| hasher.hash_one(&*names[*index as usize].text));
        index
    }

    fn drop_view(&mut self, at: u32) {
        let View { name, argument, .. } = self.views[at as usize];
        self.free_views.push(at);
        self.drop_name(name);
        self.drop_name(argument);
    }

    fn drop_name(&mut self, index: u32) {
        let Some(name) = self.names.get_mut(index as usize) else { return };
        name.uses -= 1;
        if name.uses > 0 {
            return;
        }
        let text = core::mem::take(&mut name.text);
        match self.by_text.find_entry(self.hasher.hash_one(&*text), |place| *place == index) {
            Ok(place) => drop(place.remove()),
            Err(_) => debug_assert!(false, "what has a name is in the table"),
        }
        self.free_names.push(index);
    }
}

/// Is it this view model, or inside it?
fn is_part_of(text: &[u8], name: &[u8]) -> bool {
    text.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest[0] == b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(views: &Views, list: ViewList) -> Vec<(String, u16)> {
        views.each(list).map(|(name, upstreams)| (String::from_utf8_lossy(name).into_owned(), upstreams.0)).collect()
    }

    fn close(views: &mut Views, list: &mut ViewList, name: &[u8]) -> Upstreams {
        let upstreams = views.close(*list, name);
        let last = views.last_opening();
        for upstream in upstreams.each() {
            views.left(list, upstream, name, last);
        }
        upstreams
    }

    fn pairs(expected: &[(&str, u16)]) -> Vec<(String, u16)> {
        expected.iter().map(|(name, upstreams)| (name.to_string(), *upstreams)).collect()
    }

    #[test]
    fn a_choice_holds_from_request_to_dispose_and_order_is_kept() {
        let (mut views, mut a, mut b) = (Views::default(), ViewList::default(), ViewList::default());
        for (name, upstreams) in [("One", 1), ("Page", 2), ("Page.Sub", 4), ("Pages", 1), ("Page.Sub.X", 2)] {
            assert!(matches!(views.open(&mut a, name.as_bytes(), Upstreams(upstreams)), Opened::New(_)));
        }
        assert_eq!(views.open(&mut a, b"Page", Upstreams(8)), Opened::Already);
        assert!(matches!(views.open(&mut b, b"Page", Upstreams(8)), Opened::New(_)));
        assert_eq!(
            (views.upstreams(a, b"Page"), views.upstreams(b, b"Page")),
            (Some(Upstreams(2)), Some(Upstreams(8)))
        );
        assert_eq!(views.upstreams(b, b"One"), None);
        assert_eq!(
            names(&views, a),
            pairs(&[("One", 1), ("Page", 2), ("Page.Sub", 4), ("Pages", 1), ("Page.Sub.X", 2)])
        );
        assert_eq!(close(&mut views, &mut a, b"Page"), Upstreams(6));
        assert_eq!(names(&views, a), pairs(&[("One", 1), ("Pages", 1)]));
        assert_eq!(close(&mut views, &mut a, b"Page"), Upstreams(0));
        // The end of the list is known after removals, too.
        views.open(&mut a, b"Last", Upstreams(1));
        assert_eq!(close(&mut views, &mut a, b"Last"), Upstreams(1));
        views.open(&mut a, b"New", Upstreams(1));
        assert_eq!(names(&views, a), pairs(&[("One", 1), ("Pages", 1), ("New", 1)]));
        views.close_all(&mut a);
        views.close_all(&mut b);
        assert!(views.is_empty() && views.by_text.is_empty());
        assert_eq!(views.names.len(), views.free_names.len());
    }

    #[test]
    fn a_client_has_so_many_and_no_more() {
        let (mut views, mut list) = (Views::default(), ViewList::default());
        for n in 0..VIEWS_PER_CLIENT_MAX {
            assert!(matches!(views.open(&mut list, n.to_string().as_bytes(), Upstreams(1)), Opened::New(_)));
        }
        assert_eq!(views.open(&mut list, b"x", Upstreams(1)), Opened::TooMany);
        assert_eq!(views.open(&mut list, b"7", Upstreams(1)), Opened::Already);
        close(&mut views, &mut list, b"7");
        assert!(matches!(views.open(&mut list, b"x", Upstreams(1)), Opened::New(_)));
        assert_eq!(views.len(), VIEWS_PER_CLIENT_MAX as usize);

        // However few they are, their names take so much and no more.
        let mut list = ViewList::default();
        let name = |n: u8| vec![n; VIEW_NAMES_BYTES_MAX / 4];
        for n in 0..4 {
            assert!(matches!(views.open(&mut list, &name(n), Upstreams(1)), Opened::New(_)));
        }
        assert_eq!(views.open(&mut list, b"x", Upstreams(1)), Opened::TooMany);
        assert_eq!(views.open(&mut list, &name(1), Upstreams(1)), Opened::Already);
        close(&mut views, &mut list, &name(1));
        assert!(matches!(views.open(&mut list, b"x", Upstreams(1)), Opened::New(_)));
        assert_eq!(views.names.len() - views.free_names.len(), VIEWS_PER_CLIENT_MAX as usize + 3);
    }

    #[test]
    fn what_was_requested_is_known_with_its_last_argument_unless_that_is_too_much() {
        let (mut views, mut list) = (Views::default(), ViewList::default());
        let open = |views: &mut Views, list: &mut ViewList, name: &[u8], upstreams| {
            let Opened::New(opening) = views.open(list, name, Upstreams(upstreams)) else { panic!("it is new") };
            opening
        };
        let a = open(&mut views, &mut list, b"A", 1);
        let b = open(&mut views, &mut list, b"B", 3);
        open(&mut views, &mut list, b"C", 1);
        views.keep(list, b"A", Some(b"{\"x\":1}"), 16);
        views.keep(list, b"B", Some(b"null"), 16);
        views.requested(list, b);
        views.requested(list, a);
        let again = |views: &Views, list, upstream| {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            views
                .requested_from(list, upstream)
                .map(|(name, argument)| (text(name), argument.map(text)))
                .collect::<Vec<_>>()
        };
        assert_eq!(again(&views, list, 0), [("A".into(), Some("{\"x\":1}".into())), ("B".into(), None)]);
        assert_eq!(again(&views, list, 1), [("B".into(), None)]);
        // All of a client together have so many bytes; what is requested again counts once.
        views.keep(list, b"A", Some(b"{\"x\":12}"), 16);
        assert!(views.is_replayable(list, 0));
        views.keep(list, b"B", Some(b"123456789"), 16);
        assert_eq!((views.argument(list, b"B"), views.argument(list, b"C")), (None, Some(None)));
        assert_eq!(again(&views, list, 0), [("A".into(), Some("{\"x\":12}".into()))]);
        assert!(!views.is_replayable(list, 0) && !views.is_replayable(list, 1) && views.is_replayable(list, 2));
        views.keep(list, b"B", Some(b"1234567"), 16);
        assert!(views.is_replayable(list, 0));
        assert_eq!(views.argument(list, b"B"), Some(Some(&b"1234567"[..])));
        // A mirror that has none of this name is asked for it no more.
        views.spare(list, 1, b"B");
        assert_eq!((views.upstreams(list, b"B"), again(&views, list, 1)), (Some(Upstreams(1)), vec![]));
        views.close_all(&mut list);
        assert!(views.is_empty() && views.by_text.is_empty());
        assert_eq!(views.names.len(), views.free_names.len());
    }

    #[test]
    fn what_is_disposed_of_is_known_until_the_app_server_has_been_told() {
        let (mut views, mut list) = (Views::default(), ViewList::default());
        let Opened::New(first) = views.open(&mut list, b"A", Upstreams(1)) else { panic!("it is new") };
        views.requested(list, first);
        assert_eq!(views.close(list, b"A"), Upstreams(1));
        let told = views.last_opening();
        assert_eq!((views.upstreams(list, b"A"), views.close(list, b"A")), (None, Upstreams(0)));
        assert_eq!(views.requested_from(list, 0).count(), 1, "for whoever requests everything again");
        let Opened::New(second) = views.open(&mut list, b"A", Upstreams(1)) else { panic!("it is new") };
        views.requested(list, second);
        views.left(&mut list, 0, b"A", told);
        assert_eq!(names(&views, list), pairs(&[("A", 1)]));
        assert_eq!(views.requested_from(list, 0).count(), 1);
        assert_eq!(close(&mut views, &mut list, b"A"), Upstreams(1));
        assert!(views.is_empty());
    }

    #[test]
    fn what_is_cancelled_is_the_view_model_that_its_request_opened() {
        let (mut views, mut list) = (Views::default(), ViewList::default());
        let Opened::New(first) = views.open(&mut list, b"Page", Upstreams(1)) else { panic!("it is new") };
        close(&mut views, &mut list, b"Page");
        let Opened::New(second) = views.open(&mut list, b"Page", Upstreams(2)) else { panic!("it is new") };
        views.cancel(&mut list, first);
        assert_eq!(names(&views, list), pairs(&[("Page", 2)]));
        views.cancel(&mut list, second);
        assert!(views.is_empty());
    }
}
