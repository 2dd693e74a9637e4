// A click on a map enlarges it eight times around the place that was clicked; another click shows the whole map again.
for (const map of document.querySelectorAll('.map')) {
  const sheet = map.querySelector('.sheet');
  map.addEventListener('click', (event) => {
    const box = sheet.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width;
    const y = (event.clientY - box.top) / box.height;
    const factor = map.classList.toggle('zoomed') ? 8 : 1;
    map.style.height = factor === 1 ? '' : `${map.clientHeight}px`;
    sheet.style.width = `${100 * factor}%`;
    map.scrollLeft = x * sheet.clientWidth - map.clientWidth / 2;
    map.scrollTop = y * sheet.clientHeight - map.clientHeight / 2;
  });
}
