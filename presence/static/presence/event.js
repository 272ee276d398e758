/* Fills in the required fields of the event that the operator chooses, unless something else was typed. */

(() => {
    "use strict";

    const event = document.getElementById("id_event");
    const data = document.getElementById("id_payload");
    if (!event || !data) {
        return;
    }
    const samples = JSON.parse(event.dataset.samples);
    const without = (text) => text.replace(/\s+/g, "");
    event.addEventListener("change", () => {
        const isOurs = ["", "{}", ...Object.values(samples).map(without)].includes(without(data.value));
        if (isOurs) {
            data.value = samples[event.value];
        }
    });
})();
