use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;
use crate::threads::ThreadState;

/// About a number; each ten are a group.
struct About(u64);

impl Question for About {
    type Answer = (u64, bool);

    fn group(&self) -> u64 {
        self.0 / 10
    }

    fn unknown(&self) -> Self::Answer {
        (self.0, false)
    }
}

const OPTIONS: DeskOptions =
    DeskOptions { thread: "desk-test", about: "tests", waiting_max: 100, deadline: Duration::from_millis(300) };

/// Below 1000 it answers at once, from there on when it is let go, and dies of 13.
struct Served {
    desk: Desk<About>,
    answers: Receiver<(u64, bool)>,
    let_go: Sender<()>,
    threads: Threads,
}

fn served() -> Served {
    let desk = Desk::new(OPTIONS);
    let (told, answers) = channel();
    let (let_go, stuck) = channel::<()>();
    let stuck = Arc::new(Mutex::new(stuck));
    let worker = move || {
        let stuck = Arc::clone(&stuck);
        move |question: &About| {
            assert_ne!(question.0, 13, "as the test wants it");
            if question.0 >= 1000 {
                let _ = stuck.lock().unwrap().recv();
            }
            (question.0, true)
        }
    };
    let tell = move || {
        let told = told.clone();
        move |answer| told.send(answer).unwrap_or_default()
    };
    let threads = Threads::new(|| panic!("nothing essential has failed"));
    desk.serve(&threads, worker, tell).unwrap();
    Served { desk, answers, let_go, threads }
}

impl Served {
    fn ask(&self, number: u64) {
        assert!(self.desk.ask(About(number)).is_ok());
    }

    /// Figures, once as many threads were replaced: the new one answers before it is counted.
    fn figures(&self, replaced: u64) -> DeskFigures {
        let until = Instant::now() + Duration::from_secs(20);
        while self.desk.figures().replaced != replaced && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.desk.figures()
    }

    fn next(&self) -> (u64, bool) {
        self.answers.recv_timeout(Duration::from_secs(20)).unwrap()
    }
}

#[test]
fn a_full_desk_gives_questions_back_and_counts_them() {
    let desk = Desk::new(DeskOptions { waiting_max: 2, ..OPTIONS });
    let taken: Vec<bool> = (0..5).map(|number| desk.ask(About(number)).is_ok()).collect();
    assert_eq!(taken, [true, true, false, false, false]);
    std::thread::sleep(Duration::from_millis(5));
    let figures = desk.figures();
    assert_eq!((figures.waiting, figures.asked, figures.not_asked), (2, 2, 3));
    assert!(figures.oldest_ms >= 5);
}

#[test]
fn a_stuck_thread_is_replaced_and_its_question_given_up() {
    let served = served();
    served.ask(1);
    assert_eq!(served.next(), (1, true));
    served.ask(1000);
    served.ask(2);
    assert_eq!((served.next(), served.next()), ((1000, false), (2, true)));
    let figures = served.figures(1);
    assert_eq!((figures.given_up, figures.stuck, figures.replaced, figures.waiting), (1, 1, 1, 0));
    // What else is there is not looked at.
    served.ask(1001);
    assert_eq!((served.next(), served.desk.figures().stuck), ((1001, false), 1));
    // The late answer is not told, and its thread ends.
    served.let_go.send(()).unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while served.desk.figures().stuck > 0 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
    served.ask(3);
    assert_eq!((served.next(), served.desk.figures().stuck), ((3, true), 0));
}

#[test]
fn a_few_threads_are_stuck_at_most() {
    let served = served();
    for group in 0..THREADS_MAX as u64 {
        served.ask(1000 + 10 * group);
        assert_eq!(served.next(), (1000 + 10 * group, false));
    }
    served.ask(4);
    assert!(served.answers.recv_timeout(Duration::from_millis(200)).is_err());
    let figures = served.figures(7);
    assert_eq!((figures.stuck, figures.replaced, figures.waiting), (8, 7, 1));
    assert!(figures.oldest_ms >= 200);
    served.let_go.send(()).unwrap();
    assert_eq!(served.next(), (4, true));
}

#[test]
fn a_thread_that_dies_is_replaced() {
    let served = served();
    served.ask(13);
    served.ask(5);
    assert_eq!((served.next(), served.next()), ((13, false), (5, true)));
    let figures = served.figures(1);
    assert_eq!((figures.given_up, figures.replaced), (1, 1));
}

#[test]
fn the_threads_end_with_the_desk() {
    let Served { desk, threads, answers, let_go: _let_go } = served();
    drop(desk);
    let watch = threads.stats().into_iter().find(|stats| stats.name == "sockeye-watch").unwrap();
    while watch.state() != ThreadState::Ended {
        std::thread::yield_now();
    }
    assert!(answers.recv().is_err());
}
