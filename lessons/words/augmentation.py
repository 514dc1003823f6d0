"""What the grader says in lesson 22: hints, mistakes, remarks, questions."""

exercises = {
    "22a": dict(
        hints=[
            "How many windows are needed so that each target is in one? How many targets too many have they?",
            "Both draws come from one generator, made of seed and epoch; then cut at both ends of the text.",
            "W = ceil((n-1)/T); order, offset; for w: a = 1 + w T - offset, (max(a, 1), min(a+T, n))",
        ],
        wrong={
            "fixed blocks": "Each token stands at the same place of its window in every epoch.",
            "never shuffled":
                "The windows come in the order of the text, epoch after epoch. Which step mixes them?",
            "drawn with replacement":
                "Some windows come twice, and more than a third not at all. What draws without putting back?",
            "epoch left out":
                "Two epochs are alike, cuts and order. What should the random numbers depend on, beside the "
                "seed?",
            "seed left out": "Two seeds give one and the same run. Where is the seed?",
            "seed plus epoch":
                "Epoch 1 of seed 1 is epoch 0 of seed 2: sums meet. Hand both numbers to the generator.",
            "last window left out":
                "The tokens at the end are never asked for. Is the number of windows rounded up?",
            "offset up to T":
                "The cuts can move further than there is room: how much is left over at offset 0?",
            "largest offset never drawn":
                "Of `spare` + 1 offsets you draw from the first `spare`. Does rng.integers(n) ever give n?",
            "moved the other way": "The first tokens are never asked for. Which way do the cuts move?",
            "begins before the text":
                "A window begins at a target that is not there. What is the first place that can be a "
                "target?",
            "ends behind the text": "A window ends behind the text. How many targets are left?",
            "token 0 as target": "Your targets begin at place 0. What comes before it, to guess it from?",
            "a start anywhere":
                "Each window begins anywhere: some targets come often, others never. An epoch has each once.",
            "short windows left out": "The short windows at both ends are gone, and with them their tokens.",
            "stop included":
                "One target is missing between a window and the next. Does `stop` still belong to it?",
        },
    ),
    "22b": dict(
        hints=[
            "Which of x and y is what the model reads, and which is what it is asked?",
            "A generator of your own; for each token one draw says whether, another what.",
            "not training: as they are; places = uniform (B, T) < rate; random ids there, else x; y",
        ],
        wrong={
            "targets follow the noise":
                "Your targets are the noise, one token later: nobody can guess that. Which ids should y "
                "hold?",
            "targets replaced, too":
                "Targets are drawn at random, too: the loss cannot fall below a floor. What should y be?",
            "val replaced, too":
                "Noise without training: your val loss changes with the seed. When is x to stay as it is?",
            "same noise each step":
                "Two steps have their noise at the same places. What should it depend on, beside the seed?",
            "seed left out": "Two seeds have the same noise. Where is the seed?",
            "another noise each call":
                "The same step, called again, has other noise: a resumed run would be another run.",
            "global generator drawn from":
                "The noise comes from random numbers that everyone draws from. Who seeds them for a step?",
            "global generator seeded":
                "You seed a generator that others use: dropout, say. Can the noise have one of its own?",
            "ids outside": "One of your ids has no row in the embedding table. What is the largest id of V?",
            "last id never drawn":
                "One id is never drawn. What does the upper end of your draw mean: up to it, or below it?",
            "one id for all": "What is replaced is always the same id. That is a blank, not noise.",
            "a row at a time": "Whole texts become noise, and all others none. For what should be drawn?",
            "a column at a time":
                "All texts of the batch have their noise at the same places. For what should be drawn?",
            "rate turned around": "Nearly all tokens are noise. Which way is the comparison?",
            "rate not the argument": "Right for one rate. Where is the argument?",
            "everything replaced": "Nothing is left of x. Which places are replaced?",
            "no noise": "In training, too, x comes back as it is.",
            "in place": "The caller's x was changed: val may be made of the same tensor. Work on a copy.",
        },
        also={
            "ids of the batch": "The noise is drawn as often as in the batch; asked was each id alike.",
            "seed plus step": "Seed 1 at step 2 has the noise of seed 2 at step 1: sums meet.",
        },
    ),
    "22c": dict(
        hints=[
            "Two runs with the same seed share luck. What is left of it in the difference of their losses?",
            "Mean and standard deviation (n - 1) of the gains; the mean of n spreads less, by a root.",
            "gains a - b; radius = t * deviation / sqrt(n); decided if 0 is not within it",
        ],
        wrong={
            "one seed": "The first seed decides. What do the others say?",
            "best of each":
                "The luckiest run of each side is compared: more seeds, more luck. What is compared instead?",
            "middle one": "This is the median, asked for is the mean.",
            "largest gain": "The seed that suits best decides. What about the others?",
            "not in pairs":
                "Your interval holds what both sides of a seed have in common. What spreads less: losses, or "
                "gains?",
            "pairs sorted": "Sorted, the losses of different seeds meet. What makes two runs a pair?",
            "sign of the gain": "Lower is better, and your gain grows with the loss.",
            "divided by n":
                "Your spread is too small for so few seeds: by how many is the sum of squares divided?",
            "variance for deviation": "The spread is a root of squares.",
            "spread of single runs":
                "That is how far single gains spread. The mean of n of them spreads less: by which factor?",
            "divided by n, again": "The mean of four gains spreads half as much as one, not a quarter.",
            "t left out": "One standard error to each side leaves the truth out far too often. Where is t?",
            "1.96 for t": "1.96 is for many seeds. With few, the spread itself is a guess: what does t say?",
            "any gain decides": "low, gain and high are one number: nothing is ever undecided.",
            "decided by the gain":
                "The interval is right, and yet luck is called a gain. When is it undecided?",
            "never plain": "What if the whole interval lies below 0?",
        },
    ),
}  # fmt: skip

predictions = {
    "22.1": dict(
        ask="share of 300 windows never seen, if 300 are drawn one by one and put back each time",
        wrong={
            0.0: "That is the case if none is put back; put back, some come twice and 0.367 never.",
            0.5: "A half would be a fair guess; each is missed with (1 - 1/300)^300, 0.367.",
            0.632: "0.632 is the share that is seen; 0.367 is not.",
        },
    ),
    "22.2": dict(
        ask="lowest loss in nats per target, if 1 target in 20 is one of 65 letters, drawn at random",
        wrong={
            0.0: "Nobody can know a drawn letter; that costs 0.401 on average.",
            0.209: "0.05 x ln 65 is right if you know which are drawn; not to know costs, too: 0.401.",
            4.174: "ln 65 is the price if all are drawn; one in 20 costs 0.401.",
        },
    ),
}  # fmt: skip
