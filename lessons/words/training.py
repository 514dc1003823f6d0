"""What the grader says in lesson 15: hints, mistakes, remarks, questions."""

exercises = {
    "15a": dict(
        hints=[
            "What does the model do in training that it should not do while it is judged? Who undoes that?",
            "model.training tells the mode, torch.no_grad() spares the graph, ignore_index is for -1 in y.",
            "remember the mode; eval; per split: add nats, count targets, divide once; back to the mode",
        ],
        wrong={
            "no eval": "Dropout is on: two calls differ. In which mode is a model judged?",
            "left in eval": "The losses are right, but dropout stays off. How was the mode before?",
            "always back to train": "It came in eval mode, and leaves in train mode: why?",
            "train data for both":
                "The gap between train and val is exactly 0. Which batches did each of them see?",
            "graph built": "Losses are right, but each pass builds a graph for nothing.",
            "graph handed out":
                "Your losses hold on to the graphs of all passes, and memory grows. A number is enough.",
            "gradients off for good":
                "After your call no gradient is computed any more, not in training either.",
            "one batch": "The first batch alone is a guess. What about the others?",
            "as nanoGPT has it":
                "Two things: short batches count as much as long ones, and what came in eval mode leaves in "
                "train.",
            "weighted by all positions":
                "A batch's mean is over its scored targets. How many are they, where some y are -1?",
            "mean of batch means":
                "A batch of few targets counts as much as one of many. How often should you divide?",
            "all positions counted": "Your losses are too low. Is y = -1 counted, too?",
            "-1 taken for a letter": "y = -1 is no letter. How does a loss leave it out?",
        },
    ),
    "15b": dict(
        hints=[
            "How long is a vector that is cut into several tensors?",
            "One length over all gradients; one factor for all of them, never above 1; then the optimizer.",
            "norm: root of the sum of all squares; if norm > limit > 0: gradients times limit / norm; step",
        ],
        wrong={
            "always rescales": "What was shorter than the limit got longer. When is there work to do?",
            "each tensor by itself":
                "Each tensor got a factor of its own, so the step points elsewhere. What has one length "
                "here?",
            "by value":
                "Entries are cut off one by one, so the step points elsewhere. What is to be shortened?",
            "squared length":
                "You say {length:.2f} for a gradient of length {right:.2f}. What is left to do with the "
                "squares?",
            "lengths added up":
                "You say {length:.2f} for a length of {right:.2f}. Do lengths add up, or their squares?",
            "after the step":
                "The step was made with the whole gradient: clipped after it, or never put back into .grad?",
            "no step": "The weights stand where they stood: the gradient was shortened, and then?",
            "factor upside down": "Long gradients grow. Which way is the ratio?",
            "length after clipping":
                "The step is right. Told should be how long it was before: that shows when it explodes.",
            "0 stops everything": "With limit 0 no weight moves. What does 0 say here?",
            "frozen parameters": "What is not trained has None as its .grad.",
            "divided by zero":
                "All gradients may be 0, and so is their length then. Of what is it a divisor in yours?",
            "always rescales, NaN":
                "Gradients shorter than the limit got longer, and zeros became NaN. When is there work "
                "to do?",
        },
        also={
            "tensor": "It is a tensor.",
        },
    ),
    "15c": dict(
        hints=[
            "To go on tomorrow from a file alone: which numbers of today would you need in it?",
            "Both have state_dict(), which refers to living tensors. And what draws the masks of dropout?",
            "load both and the step, if saved; per update: rate, seed of the step, loss, step; deep copies",
        ],
        wrong={
            "optimizer not saved":
                "From update {first} on the weights differ. What does the optimizer remember between "
                "updates?",
            "weights not saved":
                "The resumed run goes on from fresh weights. What did the first half leave behind?",
            "step not saved":
                "{made} updates after the save, where {left} were left: the schedule begins anew. What is "
                "missing?",
            "first batches again":
                "The first batch after the save is number {asked}: read already, though the rate goes on.",
            "that many more":
                "{made} updates after the save, {left} were left. Where does `last` count from?",
            "last update again":
                "The first batch after the save is number {asked}: its update is in the weights already.",
            "one update left out": "The first batch after the save is number {asked}. Which comes next?",
            "random state lost":
                "From update {first} on other dropout masks are drawn. What decides which, and is it in the "
                "file?",
            "seeded once per call":
                "After the save dropout draws the masks of the first updates again. What should a mask "
                "depend on?",
            "same mask each update": "All updates drop the same units. Should masks not vary?",
            "eval mode": "Nothing is ever dropped. Which mode is that?",
            "references, not copies":
                "Training went on after your return, and what you had saved moved with it. Is it a copy?",
            "rate set once":
                "The learning rate stays what it was at the first update of a call. Whose step belongs in "
                "lr_at?",
            "first group only": "One group has its rate. What of the others?",
            "rate never set": "The rate is the optimizer's own. Who asks lr_at?",
            "gradients pile up": "Each update holds the gradients before it, too.",
        },
    ),
}  # fmt: skip

predictions = {
    "15.1": dict(
        ask="updates in one epoch of 1,003,854 ids, with 12 windows of 64 in each",
        wrong={
            15685.0: "15,685 is the number of windows; 12 of them make an update: 1,307.",
            83654.0: "83,654 would be windows of one id; they have 64: 1,307.",
            1003854.0: "So many ids there are; an update reads 12 x 64 of them: 1,307.",
        },
    ),
    "15.2": dict(
        ask="a gradient of length 5 is clipped at 2: each entry is multiplied by",
        wrong={
            0.08: "0.08 is 2 over the squared length; over the length it is 0.4.",
            2.5: "2.5 makes it longer; the other way round it is 0.4.",
            2.0: "2 is how long it is afterwards; the factor is 2 / 5 = 0.4.",
        },
    ),
    "15.3": dict(
        ask="saved after 5 updates, resumed without the optimizer: first to differ, counted from 1",
        wrong={
            5.0: "The fifth was made before the save; the sixth is the first without its averages.",
            7.0: "The sixth already needs the averages of those before it.",
            1.0: "The first five were made before the save; it is the sixth.",
        },
    ),
}  # fmt: skip
