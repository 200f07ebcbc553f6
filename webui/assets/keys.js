// Ctrl/Cmd+Enter draws, Esc cancels, Ctrl/Cmd+Up and Down change the weight under the cursor.
(() => {
  // The first of the buttons that is on show: the tabs that draw have one each.
  function press(...ids) {
    const buttons = ids.flatMap((id) => [...document.querySelectorAll(`#${id}, #${id} button`)]);
    buttons.find((one) => one.matches("button:not([disabled])") && one.checkVisibility())?.click();
  }
  const STEP = 0.05;

  // The `<lora:name:0.8>` or `(words:1.1)` around the cursor: where the number stands that is under or before
  // the cursor, and what it is. A tag without one is at weight 1.
  function numberAt(text, cursor) {
    const weights = /<lora:[^<>:]+((?::(?:\w+=)?-?\d*\.?\d+)*)(?:[^<>]*>)?|\([^()]*(:-?\d*\.?\d+)\)/dg;
    for (const found of text.matchAll(weights)) {
      if (cursor < found.index || cursor > found.index + found[0].length) continue;
      const [begin, end] = found.indices[1] ?? found.indices[2];
      if (begin === end) return { start: end, end, value: 1, before: ":" };
      const all = [...text.slice(begin, end).matchAll(/:(?:\w+=)?([^:]+)/g)];
      const one = all.findLast((each) => begin + each.index < cursor) ?? all[0];
      const stop = begin + one.index + one[0].length;
      return { start: stop - one[1].length, end: stop, value: parseFloat(one[1]), before: "" };
    }
    return null;
  }

  function dial(box, change) {
    const found = numberAt(box.value, box.selectionStart);
    let { value: text, selectionStart: from, selectionEnd: to } = box;
    if (found) {
      const number = (Math.round((found.value + change) * 100) / 100).toString();
      const start = found.start + found.before.length;
      box.value = text.slice(0, found.start) + found.before + number + text.slice(found.end);
      box.setSelectionRange(start, start + number.length);
    } else {
      if (from === to) {
        while (from > 0 && /[^\s,()<>]/.test(text[from - 1])) from--;
        while (to < text.length && /[^\s,()<>]/.test(text[to])) to++;
      }
      if (from === to) return;
      const word = `(${text.slice(from, to)}:${(1 + change).toFixed(2)})`;
      box.value = text.slice(0, from) + word + text.slice(to);
      box.setSelectionRange(from, from + word.length);
    }
    box.dispatchEvent(new Event("input", { bubbles: true }));
  }

  document.addEventListener("keydown", (event) => {
    const command = event.ctrlKey || event.metaKey;
    if (command && event.key === "Enter") {
      event.preventDefault();
      // Gradio takes over what was typed when a box is left.
      document.activeElement?.dispatchEvent(new Event("input", { bubbles: true }));
      press("generate", "blend");
    } else if (event.key === "Escape") {
      // What is open over the page is closed by it, and nothing else.
      const open = document.fullscreenElement || document.querySelector('ul[role="listbox"], dialog[open]');
      if (open?.checkVisibility?.()) return;
      press("cancel", "blend-cancel");
    } else if (command && (event.key === "ArrowUp" || event.key === "ArrowDown")) {
      const box = document.activeElement;
      if (!box?.matches?.("#prompt textarea, #negative textarea, #blend-text textarea")) return;
      event.preventDefault();
      dial(box, event.key === "ArrowUp" ? STEP : -STEP);
    }
  });
})();
