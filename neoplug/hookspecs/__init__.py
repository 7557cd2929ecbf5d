"""Hook specifications: a run in pseudocode with each hook at its place, then the hooks in call order.

    recipe = read(RECIPE, overrides)
    check(recipe)                                                   before anything is loaded
    open_source()                                                   of each source of rows that is a plugin
    rows = tokenise(recipe.data);  train, held_out = split(rows)
    on the meta device, without data:                               a dry run, before weights are loaded
        load_kwargs("teacher");  load_kwargs("student");  prepare_student(student, None, rng)
        model = add_adapter(student, None, total_steps, rng)
        groups = param_groups(model, learning_rate);  make_optimizer(groups, model)
        rate(0, total_steps, warmup_steps)
    student = load in full precision
    prepare_student(student, batches, rng)                          pruning; cached, then loaded like any model
    with `teacher.cache`:                                           the teacher is loaded for what is missing, and freed
        cache_folder()                                              or it was built before: there is nothing to load
        load_kwargs("teacher");  after_load(teacher, "teacher")
        fit_cache(states, logits)                                   once, for all documents
        for document in those that are not stored:                  each once, or `draws` times
            encode_teacher(states, logits, fitted, rng)
        on_evaluate(teacher, ...)                                   its results are stored
    open_tracker(path, config, group)                               on the main process, as all hooks of trackers
    for role in teacher, student:                                   not a teacher that is the student itself
        model = load(**load_kwargs(role))                           quantisation
        after_load(model, role)
    for model in teacher, student:
        on_evaluate(model, teacher, ...)                            evaluation metrics and probes, before training
    on_measured(0, measured, "student");  on_measured(0, measured, "teacher")
    model = add_adapter(student, batches, total_steps, rng)         everything else is frozen
    base_weights(model);  save_adapter(model, path)                 tried once, in a folder that is removed
    load_kwargs("student");  after_load(copy, "student");  load_adapter(copy, path)    logits are compared
    groups = param_groups(model, learning_rate);  optimizer = make_optimizer(groups, model)
    rate(0, total_steps, warmup_steps)                              of the first step, times each group's rate
    state_dict();  on_save(model, path);  load_state_dict(state)    likewise
    for step in range(max_steps):
        for batch in the step's micro-batches:                      all edits of a step come before its first loss
            for row of the batch:
                edit_documents(documents, progress, rng)            the batch is made of what the last one returns
                edit_batch(batch, progress, rng)                    of this row alone
        for batch in the step's micro-batches:
            with `teacher.cache`:                                   in a thread, while the batch before is trained on
                decode_teacher(stored, head, fitted)
            for chunk of the batch's answer tokens:
                token_gradient(student, teacher, labels, progress)  of the losses with a closed form
                token_loss(student, teacher, labels, progress)      of the other losses
                with a cache of entries, in place of these two:
                    token_gradient_sparse(student, ids, probabilities, rest, teacher_entropy, labels, progress)
                    token_loss_sparse(student, ids, probabilities, rest, teacher_entropy, labels, progress)
                token_weight(student, teacher, labels, position, progress)    times loss and gradient of each token
        divide by the step's answer tokens
        penalty(model, progress)                                    added to the loss, once a step
        clip, optimizer.step();  rate(step + 1, total_steps, warmup_steps)
        on_step_end(step, progress, model, metrics, name)
        every logging_steps, evaluation and save, and after the last step:
            for line in those that are new in metrics.jsonl:
                on_log(line)
            for line in the same, but not after the last step:
                should_stop(step, metrics, None)
        every eval_steps, but not after the last step:
            on_evaluate(model, teacher, ...);  on_measured(step, measured, "student")
            should_stop(step, metrics, measured)
        every save_steps, and after the last step:
            state_dict();  on_save(model, path)
    on_evaluate(model, teacher, ...);  on_measured(step, measured, "student")
    base_weights(model);  save_adapter(model, path);  on_train_end(model, result)
    load_kwargs("student");  after_load(copy, "student");  load_adapter(copy, path)    logits are compared
    close_tracker()                                                 also after a failure or an interruption
    in `neoplug export`, after the run:
        model = load_adapter(student, path);  merge_adapter(model)
    in `neoplug preview`, without models:
        check(recipe);  open_source()
        edit_documents(documents, progress, rng);  edit_batch(batch, progress, rng)    of each row that it shows

Imported by `registry` and by all layers above it. Does not belong here: how hooks are called (`registry`) and how
answers are checked (`answers`).

A plugin is a dataclass whose fields are its options; a method with a hook's name and `@hookimpl` implements that hook
and takes any subset of the hook's arguments, by name. Plugins are called in the order of their names, those marked
`@hookimpl(tryfirst=True)` before and `@hookimpl(trylast=True)` after all others.

N answer tokens of one chunk, V shared vocabulary. `model` is the transformers (or peft) module, head in place. `rng`
is a torch.Generator on the CPU, seeded by (seed, plugin name), so that one plugin's draws do not change another's.
"""

from neoplug.hookspecs import preparation, results, training
from neoplug.hookspecs.markers import API_VERSION, Reads, Role, Source, hookimpl, hookspec

__all__ = ["API_VERSION", "HOOKS_OF_SECTION", "STAGES", "Reads", "Role", "Source", "hookimpl", "hookspec"]

# The modules of the specifications; these, and the hooks in each, are in call order.
STAGES = (preparation, training, results)

# Recipe section -> hooks, of which a plugin named in the section must implement at least one.
HOOKS_OF_SECTION: dict[str, tuple[str, ...]] = {
    "source": ("open_source",),
    "load": ("load_kwargs", "after_load"),
    "cache": ("encode_teacher", "cache_folder"),
    "prepare": ("prepare_student",),
    "adapter": ("add_adapter", "param_groups", "penalty", "on_step_end"),
    "loss": ("token_loss",),
    "token_weights": ("token_weight",),
    "optimizer": ("make_optimizer", "param_groups"),
    "schedule": ("rate",),
    "stops": ("should_stop",),
    "treatments": (
        "edit_batch",
        "penalty",
        "edit_documents",
        "on_step_end",
        "prepare_student",
        "after_load",
        "on_train_end",
    ),
    "probes": ("on_evaluate", "on_step_end", "on_save", "on_train_end"),
    "trackers": ("on_log", "on_measured"),
}
