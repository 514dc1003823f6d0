"""What the grader says in lesson 31: hints, mistakes, remarks, questions."""

exercises = {
    "31a": dict(
        hints=[
            "Which numbers may an optimizer find in your module, and which may it not?",
            "__init__ freezes the layer and makes two nn.Parameter; forward adds the thin way to the "
            "layer's.",
            "forward: layer(x) + alpha / rank * (x times A, turned, times B, turned); B starts at 0",
        ],
        wrong={
            "A and B both random":
                "Before any update yours is another layer already. What has B A to be at first?",
            "both zero":
                "With A and B both 0 each one's gradient is 0 as well: neither will ever move. Which "
                "starts at 0?",
            "A zero, B random":
                "The product is 0 at first, as it should be; but here A is the random one, and B is 0.",
            "layer not frozen":
                "An optimizer that gets your parameters trains the layer, too. What is frozen?",
            "bias not frozen":
                "The layer's bias still learns. An adapter does not hold it, so it would be lost.",
            "alpha without rank": "Your update is rank times too large: alpha is shared among the rank.",
            "no scale": "Where is alpha? The update is as large as B A alone.",
            "scale upside down": "A larger alpha makes your update smaller. What is divided by what?",
            "root of the rank": "That is rsLoRA's scale. Here alpha is divided by the rank itself.",
            "layer without gradients":
                "Frozen is not cut off: x gets no gradient through your layer, and nothing below it learns.",
            "layer left out": "The update alone comes out. Beside what does it stand?",
            "bias left out": "The layer has a bias. Where is it in yours?",
            "bias added twice": "The layer has added its bias already.",
            "A of size 1": "A is random, but too large: how does nn.Linear choose the size of its weights?",
            "A never negative":
                "All numbers of A are positive. They should lie around 0, as a layer's weights.",
            "no parameters": "Nothing is trained: plain tensors are not found by parameters().",
            "written into the weight":
                "Your forward changes the layer's weight, and with each call more. Who multiplies beside it?",
            "shapes the other way": "A is (rank, in) and B (out, rank), as weights of nn.Linear are.",
            "A and B are layers": "A and B are to be nn.Parameter of your module, not layers of their own.",
            "update alone detached": "Through A and B no gradient reaches x. Both ways lead back.",
        },
    ),
    "31b": dict(
        hints=[
            "What do you need, to be able to go back bit for bit?",
            "In __init__: a copy of the weight. on and off each put one of two known tensors in place.",
            "after = before + alpha / rank * (B times A), summed in float32; on: copy after; off: copy "
            "before",
        ],
        wrong={
            "no scale": "A and B are merged without alpha / rank, which they were trained with.",
            "scale upside down": "A larger alpha changes your weights less. What is divided by what?",
            "alpha without rank": "What you add is rank times too much.",
            "divided by out": "Which side of A and of B is the rank?",
            "merged twice": "On, and on once more: now the change is there twice. What does on start from?",
            "taken out twice": "Off, when it was off already, takes out what was never put in.",
            "added and taken out":
                "On adds and off subtracts: two turns of the same kind count twice, and bfloat16 comes "
                "back rounded.",
            "subtracted from the merged one":
                "In bfloat16, W + change - change is not W: the sum was rounded. What could you have kept?",
            "before is no copy": "What you kept is the living weight itself, and it changes with it.",
            "product transposed": "The weight is (out, in). Which order of A and B makes that shape?",
            "reshaped, not multiplied right":
                "The shape fits, but the numbers are out of order: reshape does not transpose.",
            "change rounded first":
                "You round to bfloat16 twice: the change, and then the sum. Round only the sum.",
            "float32 comes back": "The layer was in bfloat16. In which type is its weight now?",
            "a tensor assigned":
                "A weight is an nn.Parameter, and you assign a tensor. What puts new numbers into it?",
            "changed with a graph":
                "Autograd watches a weight that is changed in place. Under what may you change it?",
            "off does nothing": "Once merged, the layer stays so.",
            "the change alone": "The weight that was there is gone: the change is added to it.",
            "on only once": "After the first time, on has nothing left to add.",
        },
    ),
    "31c": dict(
        hints=[
            "Which layers get an A and a B, and how large is each of the two?",
            "Go through named_modules(); of a name such as blocks.0.attn.q only the last part counts.",
            "for each nn.Linear whose last part is among the targets: rank times (in + out); the sum",
        ],
        wrong={
            "A alone": "There are two thin matrices. The other one is as long as the output.",
            "B alone": "There are two thin matrices. The other one is as long as the input.",
            "rank squared": "A is not rank x rank. How long is each of its rows?",
            "the layer's own weights": "You count what is frozen.",
            "A, B and the layer": "The layer's own weights are frozen: they are there, but not trained.",
            "all that the layers have": "Weights and biases of the layers are frozen. What is added to them?",
            "all that is so named":
                "You count frozen numbers, and of modules of any kind. What do A and B of an nn.Linear have?",
            "outermost modules alone": "named_children sees the outermost modules. Which call goes into all?",
            "end of a name":
                "'freq' ends in 'q', too, and is another layer. How are parts of a name divided?",
            "no look at the kind":
                "Not all that has such a name is an nn.Linear, and nothing else gets an adapter.",
            "weights of any kind": "You count modules that are no nn.Linear, such as an embedding.",
            "in times out": "The sides of A and B are added, not multiplied: that is the saving.",
            "all layers square":
                "With grouped queries k and v are narrower than their input, and MLPs are wider.",
            "a bias for each": "A and B have no bias.",
            "one block": "You counted one block. How many are there?",
            "every linear layer": "You count the linear layers that are no target, too.",
            "every linear layer of blocks": "All layers of the blocks are counted. Which ones are named?",
            "part of a name": "'o' is in 'blocks', too. Which part of the name has to be equal?",
            "first target alone": "There is more than one target.",
            "layers counted": "You count layers; asked for are numbers.",
        },
    ),
}  # fmt: skip

predictions = {
    "31.1": dict(
        ask="numbers that LoRA trains beside a layer of 128 inputs and 256 outputs, rank 4",
        wrong={
            512: "512 is A alone, rank x in; B has rank x out more: 1,536.",
            1024: "1,024 is B alone, out x rank; A has rank x in more: 1,536.",
            16: "A is rank x in and B is out x rank, not rank x rank: 4 x (128 + 256) = 1,536.",
            32768: "32,768 is the frozen matrix. Beside it are 4 x (128 + 256) = 1,536.",
        },
    ),
    "31.2": dict(
        ask="rank 4, alpha 16, merged without the scale: how many times the right change is that",
        wrong={
            4.0: "4 is the scale itself, alpha / rank. Left out, the change is a quarter: 0.25.",
            16.0: "The scale is alpha / rank = 4, not alpha; without it a quarter is left: 0.25.",
            1.0: "A and B were trained with the scale 4 in front. Without it a quarter is left: 0.25.",
        },
    ),
}  # fmt: skip
