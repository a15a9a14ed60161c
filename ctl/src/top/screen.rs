//! One view: what is asked for, what has come, which row is chosen, and where Enter leads.

use sockeye_ctl::protocol::{
    Answer, DnsArguments, DnsBy, DnsSort, FlowsArguments, GroupBy, OwnerSort, OwnersArguments, PeersArguments, Request,
    SortBy,
};

use super::cells::{Row, Rows};
use super::filter::Filter;
use super::flow_page::FlowPage;
use super::views::{self, Col, Order, View};

/// Parts of a history that a row shows: one for each cell of the line.
const HISTORY: usize = 24;
/// Rows are asked for in steps of so many, up to a bound.
const ROWS_STEP: usize = 50;
const ROWS_MAX: usize = 1000;
/// What flows are added up by, in the order of the key.
const GROUPS: [GroupBy; 10] = [
    GroupBy::Process,
    GroupBy::Container,
    GroupBy::Pod,
    GroupBy::Workload,
    GroupBy::User,
    GroupBy::Namespace,
    GroupBy::Service,
    GroupBy::Network,
    GroupBy::Name,
    GroupBy::Host,
];

/// One view.
#[derive(Debug, Clone)]
pub(crate) struct Screen {
    pub(crate) view: View,
    /// The way here: `pods > shop/cart > flow`.
    pub(crate) path: String,
    /// What the row before has chosen.
    pub(crate) base: FlowsArguments,
    /// As it was typed, and what is in force of it.
    pub(crate) typed: String,
    pub(crate) filter: Filter,
    /// What flows, or both sides of `peers`, are added up by.
    pub(crate) by: Option<GroupBy>,
    /// What questions to DNS servers are added up by.
    pub(super) dns_by: DnsBy,
    /// Column that it is sorted by.
    pub(crate) order: usize,
    pub(crate) reverse: bool,
    /// Flows that have ended are shown, too.
    pub(crate) ended: bool,
    /// The row that is chosen: where it is, and what it is.
    pub(crate) selected: usize,
    pub(crate) key: Option<String>,
    /// First row that is shown.
    pub(crate) offset: usize,
    pub(crate) rows: Rows,
    /// How many match.
    pub(crate) matching: u64,
    /// Why there is no answer.
    pub(crate) error: Option<String>,
    /// Of [`View::Flow`].
    pub(crate) page: Option<Box<FlowPage>>,
    /// Of [`View::Agent`].
    pub(crate) stats: Option<Answer>,
    /// There: rows that are zero, too.
    pub(crate) all: bool,
}

impl Screen {
    pub(crate) fn new(view: View) -> Self {
        let by = (view == View::Peers).then_some(GroupBy::Workload);
        Self {
            view,
            path: view.name().into(),
            base: FlowsArguments::default(),
            typed: String::new(),
            filter: Filter::default(),
            by,
            dns_by: DnsBy::Process,
            order: views::first_order(view, false),
            reverse: false,
            ended: false,
            selected: 0,
            key: None,
            offset: 0,
            rows: Rows::default(),
            matching: 0,
            error: None,
            page: None,
            stats: None,
            all: false,
        }
    }

    /// Flows that match, added up, instead of what is known of all: a filter by more than a name asks for them.
    pub(crate) fn is_grouped(&self) -> bool {
        self.group().is_some()
    }

    pub(super) fn group(&self) -> Option<GroupBy> {
        let by = match self.view {
            View::Flows => return self.by.clone(),
            View::Processes => GroupBy::Process,
            View::Containers => GroupBy::Container,
            View::Pods => GroupBy::Pod,
            View::Workloads => GroupBy::Workload,
            View::Peers => self.by.clone()?,
            _ => return None,
        };
        self.filter.has_terms.then_some(by)
    }

    pub(crate) fn columns(&self) -> &'static [Col] {
        views::columns(self.view, self.is_grouped(), self.ended)
    }

    pub(crate) fn col(&self) -> Option<&'static Col> {
        self.columns().get(self.order)
    }

    /// Takes another filter. The columns may be others then.
    pub(crate) fn set_filter(&mut self, filter: Filter) {
        let (grouped, title) = (self.is_grouped(), self.col().map(|col| col.title));
        self.filter = filter;
        if self.is_grouped() != grouped {
            self.columns_changed(title);
        }
        self.top();
    }

    /// With flows that have ended, or without.
    pub(crate) fn show_ended(&mut self, ended: bool) {
        self.ended = ended;
        if self.col().is_none() {
            self.order = views::first_order(self.view, self.is_grouped());
        }
    }

    /// The next kind of group.
    pub(crate) fn next_group(&mut self) {
        let title = self.col().map(|col| col.title);
        let next = match &self.by {
            None => Some(GROUPS[0].clone()),
            Some(by) => GROUPS.iter().skip_while(|group| *group != by).nth(1).cloned(),
        };
        match self.view {
            View::Flows => self.by = next,
            View::Peers => self.by = next.or(Some(GROUPS[0].clone())),
            View::Dns => self.dns_by = after(self.dns_by),
            _ => return,
        }
        self.columns_changed(title);
        self.top();
    }

    fn columns_changed(&mut self, title: Option<&str>) {
        let same = self.columns().iter().position(|col| Some(col.title) == title && col.order != Order::None);
        self.order = same.unwrap_or_else(|| views::first_order(self.view, self.is_grouped()));
        self.rows = Rows::default();
    }

    /// Back to the first row.
    pub(crate) fn top(&mut self) {
        (self.selected, self.offset, self.key) = (0, 0, None);
    }

    /// What is asked for `height` lines.
    pub(crate) fn request(&self, height: usize) -> Request {
        let limit = self.limit(height);
        let (reverse, history) = (self.reverse, HISTORY);
        let sort = match self.col().map(|col| col.order) {
            Some(Order::Owners(sort)) => sort,
            _ => OwnerSort::Bytes,
        };
        let name = Some(self.filter.words().join(" ")).filter(|name| !name.is_empty());
        let owners = OwnersArguments { sort, reverse, limit, name: name.clone(), all: self.all, history };
        match self.view {
            _ if self.is_grouped() => self.flows(limit),
            View::Flows | View::Flow => self.flows(limit),
            View::Processes => Request::Processes(owners),
            View::Containers => Request::Containers(owners),
            View::Pods => Request::Pods(owners),
            View::Workloads => Request::Workloads(owners),
            View::Peers => {
                let by = self.by.clone().unwrap_or(GroupBy::Workload);
                Request::Peers(PeersArguments { by, sort, reverse, limit, name, history })
            }
            View::Dns => {
                let sort = match self.col().map(|col| col.order) {
                    Some(Order::Dns(sort)) => sort,
                    _ => DnsSort::Queries,
                };
                Request::Dns(DnsArguments { by: self.dns_by, sort, reverse, limit, name })
            }
            View::Ports => Request::Ports,
            View::Agent => Request::Stats,
        }
    }

    fn flows(&self, limit: usize) -> Request {
        let sort = match self.col().map(|col| col.order) {
            Some(Order::Flows(sort)) => sort,
            Some(Order::Owners(sort)) => of_group(sort),
            _ => SortBy::Bytes,
        };
        let by = self.group();
        let asked = FlowsArguments {
            sort,
            reverse: self.reverse,
            limit,
            by,
            pairs: self.view == View::Peers,
            ended: self.ended,
            wide: self.view == View::Flow,
            ..self.filter.flows.clone()
        };
        Request::Flows(Box::new(both(asked, &self.base)))
    }

    /// As many as are shown, and some more, so that nobody waits who goes down.
    fn limit(&self, height: usize) -> usize {
        // The end of what the agent says is as far away as can be, until it is drawn.
        let wanted = self.offset.saturating_add(2 * height).min(ROWS_MAX);
        wanted.next_multiple_of(ROWS_STEP).clamp(ROWS_STEP, ROWS_MAX)
    }

    /// What has come.
    pub(crate) fn take(&mut self, answer: Answer) {
        self.error = None;
        if self.view == View::Agent {
            self.stats = Some(answer);
            return;
        }
        let summary = answer.rows("summary").pop();
        let Some(table) = answer.tables.into_iter().find(|table| table.name != "summary") else { return };
        let shown = table.rows.len() as u64;
        self.matching = summary.and_then(|row| row.get("matching")?.as_u64()).unwrap_or(shown);
        self.rows = Rows::new(table);
        if let (View::Ports, Some(col)) = (self.view, self.col()) {
            self.rows.arrange(&self.filter, col, self.reverse);
            self.matching = self.rows.len() as u64;
        }
        self.find_selected();
    }

    /// The chosen row stays chosen where it goes.
    fn find_selected(&mut self) {
        let found = self.key.as_ref().and_then(|key| self.rows.iter().position(|row| self.key_of(row) == *key));
        self.selected = found.unwrap_or(self.selected).min(self.rows.len().saturating_sub(1));
        self.key = self.rows.get(self.selected).map(|row| self.key_of(row));
    }

    /// What tells a row from all others.
    fn key_of(&self, row: Row<'_>) -> String {
        let of = |names: &[&str]| names.iter().map(|name| row.text(name)).collect::<Vec<_>>().join("\n");
        match self.view {
            _ if self.is_grouped() => of(&["name"]),
            View::Flows | View::Flow => of(&["id"]),
            View::Processes => of(&["pid", "started"]),
            View::Containers => of(&["id", "container", "cgroup"]),
            View::Pods => of(&["uid"]),
            View::Workloads => of(&["kind", "workload"]),
            View::Peers => of(&["initiator", "responder", "service"]),
            View::Ports => of(&["protocol", "address", "port", "netns"]),
            View::Dns => of(&["name"]),
            View::Agent => String::new(),
        }
    }

    pub(crate) fn select(&mut self, index: usize) {
        self.selected = index.min(self.rows.len().saturating_sub(1));
        self.key = self.rows.get(self.selected).map(|row| self.key_of(row));
    }

    /// What the rows are added up by, where that can be chosen.
    pub(crate) fn chosen_group(&self) -> Option<String> {
        match self.view {
            View::Flows | View::Peers => self.by.as_ref().map(ToString::to_string),
            View::Dns => clap::ValueEnum::to_possible_value(&self.dns_by).map(|by| by.get_name().to_owned()),
            _ => None,
        }
    }
}

/// The next one, and after the last the first.
fn after(by: DnsBy) -> DnsBy {
    let all = <DnsBy as clap::ValueEnum>::value_variants();
    all.iter().copied().cycle().skip_while(|known| *known != by).nth(1).unwrap_or(by)
}

/// What was typed, within what was chosen before: of a list that both have, the choice counts.
pub(super) fn both(mut asked: FlowsArguments, base: &FlowsArguments) -> FlowsArguments {
    fn within<T: Clone>(asked: &mut Vec<T>, base: &[T]) {
        if !base.is_empty() {
            *asked = base.to_vec();
        }
    }
    within(&mut asked.id, &base.id);
    within(&mut asked.name, &base.name);
    within(&mut asked.process, &base.process);
    within(&mut asked.pid, &base.pid);
    within(&mut asked.user, &base.user);
    within(&mut asked.port, &base.port);
    within(&mut asked.address, &base.address);
    within(&mut asked.state, &base.state);
    within(&mut asked.protocol, &base.protocol);
    within(&mut asked.direction, &base.direction);
    within(&mut asked.container, &base.container);
    within(&mut asked.pod, &base.pod);
    within(&mut asked.namespace, &base.namespace);
    within(&mut asked.workload, &base.workload);
    within(&mut asked.label, &base.label);
    // All words must be there, whoever has said them.
    asked.text.extend(base.text.iter().cloned());
    asked.min_bytes = asked.min_bytes.max(base.min_bytes);
    asked.rtt_over_us = asked.rtt_over_us.max(base.rtt_over_us);
    asked.pair = base.pair.clone().or(asked.pair);
    asked
}

/// The order of flows that adds up to an order of groups.
fn of_group(sort: OwnerSort) -> SortBy {
    let orders = <SortBy as clap::ValueEnum>::value_variants();
    orders.iter().copied().find(|order| order.of_groups() == sort).unwrap_or(SortBy::Bytes)
}
