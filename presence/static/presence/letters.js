/* Selects all dead letters of the page at once. */

(() => {
    "use strict";

    const all = document.getElementById("all-letters");
    if (!all) {
        return;
    }
    const letters = [...document.querySelectorAll("input[name=letter]")];
    all.hidden = false;
    all.addEventListener("change", () => {
        for (const each of letters) {
            each.checked = all.checked;
        }
    });
    document.addEventListener("change", () => {
        all.checked = letters.every((each) => each.checked);
    });
})();
