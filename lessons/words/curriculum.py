"""What the grader says in lesson 35: hints, mistakes, remarks, questions."""

exercises = {
    "35a": dict(
        hints=[
            "Which pairs of letters may the score know? And which windows does the last stage read?",
            "A table of pairs as in lesson 2, from the training ids; one cost for each target; means of T.",
            "sort windows by mean cost; for stage 1 ... S: the first n * stage / S, rounded up, permuted",
        ],
        wrong={
            "hardest first": "Your order begins with the hardest windows.",
            "in the order of text": "Your first windows are the text's first. Which are the easiest?",
            "val counted, too":
                "The table has counted val. Then val decides what is read, and measures nothing.",
            "val alone counted": "The table has counted val, and only that. Which text may it know?",
            "val read, too": "Windows of val are trained on. Where does the training text end?",
            "not shuffled": "Within a stage the order is always the same, by difficulty. Shuffle it.",
            "permuted from text order":
                "rng.permutation gets a stage's windows from easy to hard. In which order did yours come?",
            "all shuffled": "You shuffle before you cut: no stage is easier than another.",
            "only the new ones": "A stage reads only its new windows; the easier ones belong to it, too.",
            "all windows never reached":
                "The last stage does not have all windows: the hardest are never read.",
            "one stage": "There is one stage, of everything. Where does it get harder?",
            "rounded down": "A part of a window is a window: round up.",
            "drawn with replacement":
                "Some windows of a stage come twice and others never. A permutation has each.",
            "seeded for each stage":
                "Each stage begins its random numbers anew. One generator lasts for all.",
            "sum, not mean": "The last window is short, so its sum is small. Is it easy?",
            "sum by T": "The last window has fewer targets than T. What is its mean taken over?",
            "last window dropped": "The last window is short, but it is a window. It is missing.",
            "nothing added to counts": "Your counts begin at 0. In lesson 2 each pair begins at 1.",
            "wrong axis": "Probabilities of what came before, given the letter. Which axis sums to 1?",
            "of all pairs": "That is the chance of a pair. Wanted is the second letter, given the first.",
            "single letters": "Your table does not look at the letter before.",
            "in bits": "Those are bits. The project counts in nats.",
        },
    ),
    "35b": dict(
        hints=[
            "What has to be the same in both arms, for the difference to be that of the order alone?",
            "Only seeds that both arms have; of each run the last look at budget tokens or fewer.",
            "gains by seed; mean; s with n - 1; errors = mean / (s / sqrt(n)); beyond t, either way: decided",
        ],
        wrong={
            "last of each run":
                "You compare the ends of runs, and one has read more tokens. What of the budget?",
            "as many looks": "As many looks are not as many tokens: one arm looks more seldom.",
            "first behind the budget": "You take the first look behind the budget. Both have read too much.",
            "best of one arm": "One arm is measured where it was best, the other where it ended.",
            "best of both":
                "The best of many looks is luck, and more looks are more luck. Where do both end?",
            "best at any time": "You take the lowest loss ever, also behind the budget.",
            "mean of a run": "That is the mean over a run. What is wanted is where it stands at the budget.",
            "one seed": "Your gain is that of one seed.",
            "best seed": "Your gain is that of the best seed. Other seeds were trained, too.",
            "pairs by place": "You pair runs by their place. What do the two runs of a pair have in common?",
            "seeds without a partner": "Seeds that only one arm has are in your mean. They are no pair.",
            "not in pairs": "What the seeds share stays in your error. Take differences first.",
            "sign of the gain": "The gain is positive where the other arm's loss is lower.",
            "labels exchanged":
                "Your numbers are right. A gain above 0: whose loss is higher, and who is better?",
            "size of errors": "`errors` has a sign, that of the gain.",
            "look at budget left out": "A look at just the budget counts, too: budget tokens or fewer.",
            "divided by n": "The deviation of a few numbers from their own mean is too small: n - 1.",
            "deviation, not error": "That is how single gains spread. The mean of n spreads less.",
            "2 for t": "With so few seeds 2 errors are not enough: t says how many are.",
            "any gain decides": "Some gain there always is. How many errors is it?",
            "never plain": "The plain arm can win, too: errors may be negative.",
            "limit on the gain": "t is a number of errors, not of nats.",
        },
    ),
}  # fmt: skip

predictions = {
    "35.1": dict(
        ask="easy first against plain, three seeds each: by how many standard errors do they differ",
        wrong={
            7.0: "Below 4.3, so that three seeds do not decide it. The usual result is: no difference seen.",
            20.0: "That would be a sensation. Below 4.3: three seeds do not decide it.",
        },
    ),
    "35.2": dict(
        ask="windows read in three stages (a third, two thirds, all of n), as a multiple of n",
        wrong={
            1.0: "Each stage reads the easier ones again: 1/3 + 2/3 + 1 = 2.",
            3.0: "Only the last stage has all windows: 1/3 + 2/3 + 1 = 2.",
        },
    ),
}  # fmt: skip
