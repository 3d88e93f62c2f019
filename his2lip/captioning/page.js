// Sends what the reviewer does, with the item and version that the page shows, so that a key which was pressed
// before the next item appeared decides nothing about it. All state is on the server.
(() => {
  const one = selector => document.querySelector(selector);
  const text = () => one('.review textarea');

  // An answer draws the page anew, with another line of its message.
  function warnWithoutAnswer() {
    const line = one('.message');
    setTimeout(() => {
      if (!line.isConnected) return;
      line.textContent = 'No answer for 5 s: whether this was saved is not known. What you typed stays here.';
      line.classList.add('warning');
    }, 5000);
  }

  function isChanged() {
    return [...document.querySelectorAll('.review [data-original]')]
      .some(part => part.value !== part.dataset.original);
  }

  function send(act, value) {
    const card = one('[data-item]');
    const fields = {};
    document.querySelectorAll('[data-field]').forEach(part => { fields[part.dataset.field] = part.value; });
    emitEvent('review', {
      act, value: value ?? null, fields,
      item: card ? card.dataset.item : null,
      version: card ? Number(card.dataset.version) : 0,
      text: text() ? text().value : null,
      note: one('#note') ? one('#note').value : '',
      changed: isChanged(),
    });
    warnWithoutAnswer();
  }

  function perform(act, value) {
    if (act !== 'edit') return send(act, value);
    if (!text()) return undefined;
    text().focus();
    return text().setSelectionRange(text().value.length, text().value.length);
  }

  function enlarge(figure) {
    const was = figure.classList.contains('large');
    document.querySelectorAll('figure.large').forEach(other => other.classList.remove('large'));
    if (!was) figure.classList.add('large');
  }

  // The browser asks before the page is closed or loaded again, also by itself after a lost connection.
  window.addEventListener('beforeunload', event => { if (isChanged()) event.preventDefault(); });

  document.addEventListener('click', event => {
    const button = event.target.closest('[data-act]');
    if (button) { button.blur(); perform(button.dataset.act, button.dataset.value); }
    const figure = event.target.closest('.review figure');
    if (figure) enlarge(figure);
  });

  document.addEventListener('keydown', event => {
    if (event.repeat || event.isComposing) return;
    const field = event.target.closest('textarea, input, select');
    if (event.key === 'Escape') {
      if (!field || event.target === text()) {
        const typed = field ? [field] : document.querySelectorAll('.review [data-original]');
        typed.forEach(part => { part.value = part.dataset.original; });
      }
      document.querySelectorAll('figure.large').forEach(other => other.classList.remove('large'));
      if (field) field.blur();
    } else if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      if (field) field.blur();
      send('revise');
    } else if (!field && !event.ctrlKey && !event.metaKey && !event.altKey) {
      const act = window.reviewKeys[event.key.toLowerCase()];
      const figure = document.querySelectorAll('.review figure')[Number(event.key) - 1];
      if (act) { event.preventDefault(); perform(act); } else if (figure) enlarge(figure);
    }
  });
})();
