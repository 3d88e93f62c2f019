// Sorting, filters and the choice of a figure. Without this script the page shows everything in the board's order.
"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const byId = id => document.getElementById(id);

// Sorts a table by the column of the button that is pressed: largest first, then smallest first; without a value last.
const key = (row, i) => row.cells[i].dataset.value ?? row.cells[i].textContent.trim();
function compare(x, y) {
  const numbers = [Number(x), Number(y)];
  return numbers.some(Number.isNaN) ? x.localeCompare(y) : numbers[0] - numbers[1];
}
function sort(button) {
  const head = button.closest('th'), table = button.closest('table'), i = head.cellIndex;
  const down = head.getAttribute('aria-sort') !== 'descending';
  all('thead th', table).forEach(th => th.setAttribute('aria-sort', 'none'));
  head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
  const rows = [...table.tBodies[0].rows];
  const known = rows.filter(row => key(row, i) !== ''), unknown = rows.filter(row => key(row, i) === '');
  known.sort((a, b) => (down ? -1 : 1) * compare(key(a, i), key(b, i)));
  table.tBodies[0].append(...known, ...unknown);
}
all('table.board thead button').forEach(button => button.addEventListener('click', () => sort(button)));

// Hides the columns of datasets and protocols, and the rows of models, that the filters leave out.
function apply() {
  const text = byId('model-filter').value.trim().toLowerCase(), baselines = byId('baselines').checked;
  const protocol = byId('protocol')?.value ?? '';
  const datasets = new Set(all('input[name=dataset]:checked').map(box => box.value));
  const keepsColumn = of => datasets.has(of.dataset) && (!protocol || of.protocol === protocol);
  const keepsRow = row => row.dataset.model.toLowerCase().includes(text) && (baselines || !row.classList.contains('baseline'));
  all('[data-model]').forEach(row => { row.hidden = !keepsRow(row); });
  all('[data-row-dataset]').forEach(row => {
    row.hidden = all('input[name=dataset]').some(box => box.value === row.dataset.rowDataset && !box.checked);
  });
  all('.column[data-dataset]').forEach(part => { part.hidden = !keepsColumn(part.dataset); });
  all('table.board').forEach(table => {
    const heads = all('thead th', table);
    heads.forEach((head, i) => {
      if (!head.dataset.dataset) return;
      const hidden = !keepsColumn(head.dataset);
      [...table.rows].forEach(row => { row.cells[i].hidden = hidden; });
    });
    const kept = heads.filter(head => head.dataset.dataset && !head.hidden).length;
    if (heads.some(head => head.dataset.dataset)) table.style.setProperty('--columns', Math.max(kept, 1));
    const part = table.closest('[data-figure]');
    if (part) part.classList.toggle('empty', kept === 0);
  });
  const models = all('#summary tbody tr');
  byId('shown').textContent = `${models.filter(row => !row.hidden).length} of ${models.length} models, ` +
    `${datasets.size} of ${all('input[name=dataset]').length} datasets`;
}
const filters = byId('filters');
filters.hidden = false;
filters.addEventListener('input', apply);
filters.addEventListener('submit', event => event.preventDefault());
for (const [id, checked] of [['all-datasets', true], ['no-datasets', false]]) {
  byId(id).addEventListener('click', () => {
    all('input[name=dataset]').forEach(box => { box.checked = checked; });
    apply();
  });
}

// One figure by dataset at a time.
const figure = byId('figure');
const choose = () => all('[data-figure]').forEach(part => { part.hidden = part.dataset.figure !== figure.value; });
if (figure) {
  figure.closest('[hidden]').hidden = false;
  figure.addEventListener('change', choose);
  choose();
}

// Plots are drawn when the reader comes near them.
function draw(plots) {
  const script = document.createElement('script');
  script.textContent = byId('plotly').textContent;
  document.head.append(script);
  all('.plot', plots).forEach(part => {
    const {data, layout} = JSON.parse(part.querySelector('script').textContent);
    Plotly.newPlot(part, data, layout, {responsive: true, displaylogo: false});
  });
}
if (byId('plots')) {
  new IntersectionObserver((entries, observer) => {
    if (!entries.some(entry => entry.isIntersecting)) return;
    observer.disconnect();
    draw(byId('plots'));
  }, {rootMargin: '300px'}).observe(byId('plots'));
}

// A link to the evidence of a figure opens it, and a link to a table chooses its figure.
function open() {
  const target = byId(decodeURIComponent(location.hash.slice(1)));
  if (target?.dataset.figure) {
    figure.value = target.dataset.figure;
    choose();
    target.scrollIntoView();
  }
  if (target?.tagName !== 'DETAILS') return;
  for (let part = target; part; part = part.parentElement.closest('details')) part.open = true;
  target.scrollIntoView();
  target.querySelector('summary').focus({preventScroll: true});
}
addEventListener('hashchange', open);
open();
apply();
