"""What the grader says in lesson 30: hints, mistakes, remarks, questions."""

exercises = {
    "30a": dict(
        hints=[
            "Each id has a label: itself, or -1. Which ids of a sample should the model learn to write?",
            "First ids and labels of equal length, pair by pair; x drops the last id, y the first label.",
            "labels = -1 for each prompt id, then answer and end; too long: skip; fill x: end, y: -1",
        ],
        wrong={
            "nothing masked": "The questions are learned, too. Who writes them when the model is used?",
            "first answer token left out":
                "The first token of each answer is not learned: nobody tells the model how to begin.",
            "last prompt token learned":
                "The last token of each prompt is learned. At which id does an answer begin?",
            "end token masked": "The end tokens are not learned. How will the model know when to stop?",
            "prompt learned, answer masked":
                "You have it the wrong way round: -1 stands where nothing is learned.",
            "only the last answer": "Earlier answers of a conversation are masked. Who has said them?",
            "filled places learned":
                "Places that only fill up a row are learned: end tokens that no text has.",
            "not shifted": "Your y is x itself. Which token should be told at each place?",
            "shifted twice": "Your y is two tokens later than x. The model guesses the next one.",
            "-100 for -1": "-100 is what other libraries ignore. What does this project have for it?",
            "x masked, too":
                "There is a -1 in x, and no embedding has such a row. The prompt has to be read.",
            "no end token": "Nothing closes your answers. Which token does a reply end with?",
            "one end for a sample": "One end token closes the sample. Each answer needs its own.",
            "filled on the left": "Your rows are filled on the left. Positions then begin with nothing.",
            "cut off at the right":
                "A long sample loses the end of its answer, perhaps all of it. Leave it out.",
            "cut off at the left":
                "A long sample loses its question, and an answer to nothing is learned. Leave it out.",
            "longest left out": "A sample of size + 1 ids fits: how many of them are read?",
            "too long by one": "A sample of size + 2 ids is kept. How many would be read?",
            "as wide as the window":
                "Rows are as wide as the window. The longest sample of the batch is enough.",
        },
        also={"filled with 0": "Any id may fill a row: no place before it looks there, no target is there."},
    ),
    "30b": dict(
        hints=[
            "Of how many places is it the mean, and which ones are they?",
            "y != -1 picks places out of logits (B, T, V) and of y (B, T) alike, before anything else.",
            "log_softmax; rows of the learned places; gather their y; minus the sum, by max(1, count)",
        ],
        wrong={
            "divided by all places": "You divide by all places; the loss is too small by the masked share.",
            "mean of row means": "A row with one target counts as much as a row with many. Divide once.",
            "nothing learned is nan":
                "If nothing is learned, you divide 0 by 0. One nan in .grad ends a run.",
            "sum, not mean": "That is the sum. Per what is a loss?",
            "divided by the rows": "You divide by rows: long answers weigh more. What does the mean go over?",
            "divided by rows with targets": "That is nats per answer, not per learned token.",
            "-1 taken for id 0": "Where y is -1 the model learns to say id 0. What should be learned there?",
            "-1 taken for the last":
                "Where y is -1 the model learns to say the last id. What should be learned?",
            "id 0 left out": "The id 0 is a token like any other: it has to be learned.",
            "logits set to 0": "Logits of 0 are a guess, too: each masked place costs ln V.",
            "times the mask": "A masked place may cost inf, and inf times 0 is nan. Leave it out instead.",
            "in bits": "That is in bits. The project's losses are in nats.",
            "sign": "Your loss is negative: surprise is minus the logarithm.",
            "no softmax": "Logits are no logarithms of probabilities yet.",
            "softmax, then log": "With large logits a probability becomes 0, and its logarithm -inf.",
            "a float": "A float has no graph: no gradient reaches the logits.",
        },
    ),
    "30c": dict(
        hints=[
            "What sample would training make of this conversation? Where in it does the reply begin?",
            "Lines of others pile up until the assistant speaks; each answer is encoded by itself, then end.",
            "for 0, 1, 2 ... turns left out: make all ids, open the assistant's line; return if it fits",
        ],
        wrong={
            "assistant not opened":
                "Your prompt ends before the assistant's name. It would go on as anybody.",
            "blank left out": "In training a blank stands behind the colon. Here the model has to write it.",
            "ends left out": "Earlier answers are not closed. In training the end token stands behind each.",
            "end token spelled": "You spell the end token with letters. It is one id of its own: end.",
            "no new line behind ends":
                "Behind an answer's end token the next line begins, with what character?",
            "questions closed, too": "You close what others say, too. In training only answers are closed.",
            "other names": "The names are not those of training. To the model that is another kind of text.",
            "names left out": "Nobody is named but the assistant. Who asks?",
            "system forgotten": "The system's line is gone. What must never be forgotten?",
            "system first to go": "When room is short, the system's line goes first. It should never go.",
            "newest forgotten": "You drop the newest turns, and with them the question.",
            "message by message": "Half a turn is left: an answer whose question is gone.",
            "earlier answers left out": "Earlier answers are missing. What does the user refer to?",
            "always the last turn": "Everything but the last turn is forgotten, even where there is room.",
            "nothing forgotten": "The prompt is longer than the window allows. Which turn can go?",
            "cut off at the left": "You cut in the middle of a word, and the system's line goes first.",
            "cut off at the right": "You cut off the question, and the opened line of the assistant.",
            "no room for a reply": "The prompt fills the window. Where is the reply to stand?",
            "one turn too many forgotten": "A prompt that fits exactly is shortened. May it be equal?",
            "end tokens not counted": "End tokens take places in the window, too.",
        },
    ),
}  # fmt: skip

predictions = {
    "30.1": dict(
        ask="prompt of 30 tokens, answer of 9, an end token: the share of the 40 whose loss counts",
        wrong={
            0.225: "9 of 40: the end token is masked. It is learned: it is how the model stops. 10 of 40.",
            0.275: "11 of 40: one token of the prompt is learned. The answer and its end are 10 of 40.",
            1.0: "That is without a mask. The 30 tokens of the prompt do not count: 10 of 40.",
        },
    ),
    "30.2": dict(
        ask="of 40 replies, how many end by themselves, if the end token was masked in tuning",
        wrong={
            40.0: "The end token was in the text, but never a target. What is not learned is not said: 0.",
            20.0: "What is never a target is never likely: 0.",
        },
    ),
}  # fmt: skip
