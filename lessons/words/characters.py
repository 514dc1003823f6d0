"""What the grader says in lesson 1: hints, mistakes, remarks, questions."""

exercises = {
    "1a": dict(
        hints=[
            "Two programs read the same text. How can both give each character the same id?",
            "A set holds each character once; sorted brings it into an order; enumerate counts it through.",
            "vocabulary = the different characters, sorted; code[character] = its place in that list.",
        ],
        wrong={
            "set not sorted":
                "A set has no order: in another process your ids differ, and a saved model prints garbage.",
            "order of appearance":
                "Your ids hang on which character comes first in the text. Which order is the same for all?",
            "from a part":
                "This character comes late in the text. Of how much of it did you make the vocabulary?",
            "ids from 1":
                "Your first id is 1, and a list's first place is 0. What does the largest id point to?",
            "ids from 1, both ways":
                "The text comes back, but your largest id is V. An embedding of V rows ends at V - 1.",
            "tables in different orders":
                "The decoded text is as long, with other letters. Is id 0 the same one in both tables?",
            "code points":
                "That is a row of the table for every letter of the world. How many does this text use?",
            "code points as ids":
                "Your ids are code points, 'A' is 65 in any text. At which place of the list does it stand?",
            "lower case": "Capitals are characters of their own: the text has to come back as it was.",
            "words": "These are words. What do you get by going through a text without splitting it?",
            "tables swapped": "First the vocabulary, id to character; then the code, character to id.",
        },
    ),
    "1b": dict(
        hints=[
            "If a letter of val stands between two that were learned, is it new to the model?",
            "One place in the ids is enough: what lies before it, what lies behind it.",
            "n_train = fraction * n, rounded down to a whole number; ids up to there, and ids from there.",
        ],
        wrong={
            "shuffled first":
                "The characters are shuffled: what follows what is lost, and that was to be learned.",
            "overlapping windows shuffled":
                "Nearly every window of val overlaps one of train: val will equal train for ever.",
            "fractions swapped": "Your train part is the small one. Whose share is the fraction?",
            "val inside train":
                "All of val stands in train, too: a model that learned it by heart would look good.",
            "last block used twice": "The last 8 ids of train begin val: they are learned and then asked.",
            "last id in both": "One id stands in both parts. Is the end of a slice part of it?",
            "one id lost": "One id is in neither part. Is the end of a slice part of it?",
            "val from the beginning":
                "Your val is the beginning of the text; here, as in the project, the end is held back.",
            "every so many held back":
                "Each id of val stands between two of train. A text is held back in one piece.",
            "parts swapped": "Both parts are right, in the other order: which is returned first?",
            "a fraction of an id": "fraction * n is no whole number: what makes it one?",
            "rounded to nearest": "Of 13 ids, 0.6 are 7.8: train gets 7. Rounded down, not to the nearest.",
            "rounded up": "Your train part is longer by one id: fraction * n is rounded down.",
        },
    ),
    "1c": dict(
        hints=[
            "If x is R O M E, what should the model have guessed at each of the four places?",
            "Each window takes T + 1 ids in a row: x is all but the last of them, y is all but the first.",
            "for each start s: ids s up to s + T are a row of x, s + 1 up to s + T + 1 one of y; stack.",
        ],
        wrong={
            "y = x":
                "Your y is x: the loss falls to 0, and samples repeat one letter. What is to be guessed?",
            "roll inside the window":
                "The last target of each row is the first letter of its x. Where does the text go on?",
            "zero at the end":
                "The last target of each row is 0. T ids and their targets: how many ids does that take?",
            "no room for targets":
                "Each row lacks one. T ids and their targets: how many ids does a window take?",
            "y two later": "Your y lies two places after x. Which letter follows the first of x?",
            "x and y swapped": "Your x lies after y: such a model guesses the letter before.",
            "next window": "The targets are no other stretch of text: each is the letter after its own.",
            "one target per window":
                "Each place of a window asks what comes next, not only the last: T targets in a row.",
            "float ids": "An embedding looks up rows by whole numbers. Where did yours get their fraction?",
            "time first":
                "Rows are windows here, columns are places in them. Along which axis are they stacked?",
            "one long row": "The windows are joined to one row. Which function stacks them?",
            "starts ignored": "Your windows stand side by side from the beginning. Where should they start?",
        },
    ),
    "1d": dict(
        hints=[
            "A run stops at step 500 and goes on tomorrow. What must its next batch hang on, and what not?",
            "A generator made in the function, from both numbers. Which is the last start with all targets?",
            "n - T starts are there: 0 ... n - T - 1. A new generator from [seed, step] draws B of them.",
        ],
        wrong={
            "last window never drawn":
                "One start is never drawn, the last. Is the upper limit of your function drawn itself?",
            "first window never drawn": "One start is never drawn, the first. Ids are counted from 0.",
            "one too far": "At your last start x fits in, but the text has no target for its last id.",
            "no room for the window":
                "A window that starts at the last id has nothing in it. How much room does it need?",
            "one start per batch": "All rows of a batch are the same window: how many are asked for?",
            "global generator":
                "Your batch hangs on what was drawn before. Is step 500 the same after a restart?",
            "generator that goes on":
                "A second call gives another batch: the generator has moved on. When is it made?",
            "global generator seeded":
                "You seed the generator of all: what is drawn later, dropout say, repeats. Make your own.",
            "global, seed plus step":
                "Two things: the generator of all is seeded, and 1 + 2 is 2 + 1. Who shares a batch?",
            "seed plus step": "1 + 2 is 2 + 1: run 1 at step 2 gets the batch of run 2 at step 1.",
            "seed times 1000":
                "Run 1 at step 1,000 gets the batch of run 2 at step 0. Can a generator take two numbers?",
            "step ignored": "Each step gets the same batch: the model learns it by heart and nothing else.",
            "seed ignored": "Two runs with other seeds get the same batches. What is the seed for?",
            "disjoint windows": "Your starts are multiples of T. A window may start at any id.",
            "one after the other":
                "Your starts go through the text in order, and neighbours tell nearly the same.",
            "step times 1000":
                "Run 1,000 at step 0 gets the batch of run 0 at step 1. Can a generator take two numbers?",
            "digits joined":
                "Run 0 at step 10 and run 1 at step 0 share a batch: digits joined tell no border. Can "
                "both go in?",
        },
    ),
}  # fmt: skip

predictions = {
    "1.1": dict(
        ask="start positions for windows of 64 in 1,003,854 ids, each with its 64 targets",
        wrong={
            1003791.0: "At the last of 1,003,791 starts one target is missing: it is 1,003,790.",
            1003789.0: "With 1,003,789 the last window would never be drawn: it is 1,003,790.",
            15685.0: "15,685 windows stand side by side; they may start anywhere, at 1,003,790 places.",
        },
    ),
}  # fmt: skip
