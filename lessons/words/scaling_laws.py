"""What the grader says in lesson 29: hints, mistakes, remarks, questions."""

exercises = {
    "29a": dict(
        hints=[
            "Which numbers is a letter's vector multiplied by? Which are only looked up?",
            "named_parameters names a tied matrix once. Letters: updates, rows and length.",
            "weights = all p.numel() but those of wte.weight; operations = 6 x weights x letters",
        ],
        wrong={
            "embedding counted":
                "The table of embeddings is counted. Is a letter multiplied by it, or is a row looked up?",
            "tied head twice": "A tied head is the embedding under another name, and you count it.",
            "head left out": "A head of its own is left out. What are the last vectors multiplied by?",
            "buffers, too": "Buffers are counted, too. Are they learned?",
            "matrices alone": "Biases and gains are weights, too.",
            "frozen ones left out": "What is frozen is multiplied all the same.",
            "tensors, not numbers": "You count tensors. How many numbers has each?",
            "forward alone": "2 for each weight and letter is the forward pass. What does backward cost?",
            "backward alone": "4 for each weight and letter is the backward pass alone.",
            "a product each": "Three products are right. How many operations is one: does a sum count?",
            "weights times letters": "One operation for each weight and letter: how many has a forward pass?",
            "steps for letters": "Operations are counted for each update. How many letters does it read?",
            "rows for letters": "Operations are counted for each row. How many letters has a row?",
            "one update": "That is one update. How many are there?",
        },
    ),
    "29b": dict(
        hints=[
            "If E were known: which two logarithms lie on a straight line?",
            "Runs with the most text alone. For each floor below the losses: line, curve, error.",
            "x = ln N, y = ln(L - E); slope -a, height ln A; error = sum of squares in ln L; keep the best",
        ],
        wrong={
            "no floor": "Your curve has no floor: it falls to 0, below what the text itself costs.",
            "errors in nats":
                "The smallest models rule your fit: their errors are the largest in nats. And in ln L?",
            "errors above the floor":
                "Your errors are in ln(L - E): each floor has its own yardstick. Which is common?",
            "unequal training mixed in": "Runs with less text are in your fit: they lie on another curve.",
            "least text": "You fit the runs with the least text. Asked are those with the most.",
            "nan wins": "A floor above a loss gives the logarithm of a negative number. Which can be?",
            "base ten": "You take logarithms of base 10. Which base belongs to exp?",
            "logarithm of A": "Your second number is ln A. Asked is A.",
            "sign of a": "The sign of a: loss falls as N^-a, with a above 0.",
            "ends at a high floor":
                "A floor that is too high ends your search. They come in any order: pass over it.",
            "highest floor": "You keep the highest floor. Asked is the one with the least error.",
            "worst floor": "You keep the floor with the largest error.",
            "n against the loss":
                "Your line predicts ln N from the loss. Which of the two is measured with noise?",
            "weights without logarithm": "Your line is in N, not in ln N: an exponential, not a power law.",
            "no line for A": "A is the mean of L - E. Where is the line at N = 1, that is ln N = 0?",
            "largest error": "You compare floors by the largest error alone: one run decides.",
        },
    ),
    "29c": dict(
        hints=[
            "A new run has noise of its own. And how sure is the line, far from the runs it was fitted to?",
            "Three terms under the root: 1 for the new run, 1/n for the height, a square for the slope.",
            "line through ln N, ln(L - E); s: rests, n - 2; radius = t s root(1 + 1/n + d^2/S); exp, plus E",
        ],
        wrong={
            "residuals alone":
                "Your interval knows the noise of a run, and takes the line as sure. How sure is its slope?",
            "the curve, no run":
                "That is an interval for the curve. A new run lies beside the curve, as all others did.",
            "as if in the middle": "Your interval is as narrow far away as in the middle of the runs.",
            "error of a mean": "That is how sure the mean height of the line is, and no more.",
            "divided by n": "Two numbers were fitted: with two runs the rests are 0. By what do you divide?",
            "divided by n - 1": "You divide by n - 1. How many numbers has a line?",
            "floor not added": "Your forecast is of L - E. What is asked for?",
            "floor not taken off": "You fit ln L. Which part of the loss is a power law?",
            "same in nats": "Your interval is symmetric in nats. In which unit was the noise measured?",
            "one deviation": "That is one standard deviation. What is t for?",
            "variance for deviation": "A variance is added to a logarithm. Where is the root?",
            "new weights without logarithm": "The new run's place on the line: its N, or ln N?",
            "high before low": "First low, then high. A minus in front of a radius makes it low.",
            "distance not squared": "The distance from the middle counts with its square.",
            "mean of the losses": "Your forecast does not depend on the new N: that is the mean of the runs.",
        },
    ),
    "29d": dict(
        hints=[
            "Which floors would fit nearly as well as the best one? And what does the play cost, per token?",
            "fit with a single floor tells its error; so each floor below all losses has one.",
            "keep floors with error at most best x (1 + t^2/(n - 3)); least, best, largest; nats / tokens",
        ],
        wrong={
            "training loss fitted":
                "You fit the loss on text that was trained on. It can fall below what any new text costs.",
            "per letter": "Your exact value is per letter, the losses are per token.",
            "unigram entropy":
                "That is the entropy of token frequencies: it ignores what came before, and models beat it.",
            "of the whole play": "Those are the nats of the whole play. The losses are per token.",
            "bits": "Those are bits. This project counts in nats.",
            "above the lowest loss": "Your interval has floors above a loss that was reached. Can it?",
            "all runs count": "Your n counts runs with less text, which are not fitted.",
            "lowest loss of all runs":
                "A run with less text limits your floors. Which runs are fitted?",
            "nothing counted as fitted": "How many numbers were fitted: E, A, a? What is left of n?",
            "two fitted, not three": "A line takes two numbers. The floor is a third.",
            "t not squared": "Errors are squares. And t?",
            "no interval": "Low, best and high are the same. Which floors fit nearly as well?",
            "middle of the interval": "The best floor has the least error; it need not be in the middle.",
            "twice the error": "Why twice the least error? How far it may rise depends on t and n.",
            "outside for inside": "Your interval holds the floors that do not fit.",
        },
    ),
}  # fmt: skip

predictions = {
    "29.1": dict(
        ask="operations to train a model of 1e6 weights on 2e7 letters, in units of 1e12",
        wrong={
            40.0: "That is the forward pass, 2 for each weight and letter; backward takes 4 more: 120.",
            80.0: "That is the backward pass, 4 for each weight and letter; forward takes 2 more: 120.",
            20.0: "That is N times D. Each weight is used six times for each letter: 120.",
        },
    ),
}
